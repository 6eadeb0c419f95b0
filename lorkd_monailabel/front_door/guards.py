"""Checks around MONAI Label's own functions: what a request may ask of them, and that a failure leaves no file."""

import functools
import inspect
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from starlette.background import BackgroundTask

from lorkd_monailabel.front_door.checks import (
    FORBIDDEN,
    FORBIDDEN_FOR_TASKS,
    check_name,
    check_upload,
    checked_object,
)
from lorkd_monailabel.front_door.options import DoorOptions
from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.visits import visit

Function = Callable[..., Any]
Check = Callable[[Mapping[str, Any]], None]


def guard(module: Any, name: str, check: Check, *, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Put a check before a function of a module of MONAI Label.

    Args:
        module: whose endpoints call the function by its name.
        name: of the function.
        check: given the arguments by name, raises what is wrong.
        change: changes the arguments afterwards.
    """
    function = getattr(module, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*positional: Any, **named: Any) -> Any:
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        check(bound.arguments)
        if change:
            change(bound.arguments)
        try:
            return function(*bound.args, **bound.kwargs)
        except BaseException:
            background = bound.arguments.get("background_tasks")
            for task in background.tasks if background else ():  # they remove the upload, but run after success only
                task.func(*task.args, **task.kwargs)
            raise

    setattr(module, name, run)


def guard_all(endpoints: Mapping[str, Any], options: DoorOptions) -> None:
    """Put the checks before everything that reads options, names or files.

    Args:
        endpoints: MONAI Label's modules by their names.
        options: of the front door.
    """
    limit = options.params_bytes
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # else archives write where they like

    def inference(arguments: Mapping[str, Any]) -> None:
        check_inference(arguments, limit)

    def slide(arguments: Mapping[str, Any]) -> None:
        check_options(arguments["wsi"].params or {}, FORBIDDEN)
        check_source(arguments["image"], arguments["session_id"], arguments["file"])

    def upload(arguments: Mapping[str, Any]) -> None:
        check_upload(next(arguments[key] for key in ("file", "label") if key in arguments))
        checked_object(arguments["params"], key="params", limit=limit)

    def all_tasks(arguments: Mapping[str, Any]) -> None:
        check_options(arguments["params"], FORBIDDEN_FOR_TASKS)

    def info(arguments: Mapping[str, Any]) -> None:
        checked_object(arguments["info"], key="info", limit=limit)

    guard(endpoints["infer"], "run_inference", inference, change=in_their_terms)
    guard(endpoints["wsi_infer"], "run_wsi_inference", slide)
    guard(endpoints["datastore"], "add_image", upload)
    guard(endpoints["datastore"], "save_label", upload)
    guard(endpoints["datastore"], "update_image_info", info)
    guard(endpoints["datastore"], "update_label_info", info)
    guard(endpoints["datastore"], "download_dataset", check_labelled)
    remove_afterwards(endpoints["datastore"], "download_dataset")
    guard(endpoints["session"], "create_session", lambda arguments: check_session(arguments, options.upload_bytes))
    guard(endpoints["batch_infer"], "run", check_batch, change=one_device)
    guard(endpoints["train"], "run", all_tasks)
    guard(endpoints["train"], "run_model", lambda arguments: check_task(arguments, "model", "_trainers"))
    guard(endpoints["scoring"], "run", all_tasks, change=at_once)
    guard(endpoints["scoring"], "run_method", check_scoring, change=at_once)
    guard(endpoints["activelearning"], "sample", lambda arguments: check_options(arguments["params"], {"strategy"}))


def remove_afterwards(module: Any, name: str) -> None:
    """Let the file that a function answers with be removed when it is sent; MONAI Label leaves it there for ever."""
    function = getattr(module, name)

    @functools.wraps(function)
    def run(*positional: Any, **named: Any) -> Any:
        response = function(*positional, **named)
        response.background = BackgroundTask(os.unlink, response.path)
        return response

    setattr(module, name, run)


def check_labelled(arguments: Mapping[str, Any]) -> None:
    """Check that there is something to pack.

    Raises:
        FileNotFoundError: no image has a final label.
    """
    from monailabel.interfaces.utils.app import app_instance

    if not app_instance().datastore().datalist():
        raise FileNotFoundError("no image has a final label yet, so there is no dataset; save one first")


def check_inference(arguments: Mapping[str, Any], limit: int) -> None:
    """Check a request to infer.

    Raises:
        ValueError: its options are not sound, or it names no image.
        FileNotFoundError: the studies lack the image, or the session is unknown or over.
        PermissionError: it saves a label, and the user may not.
    """
    given = checked_object(arguments["params"], key="params", limit=limit, forbidden=frozenset(FORBIDDEN))
    visit().client = str(given.get("client_id") or "")[:100]
    if given.get("save_label") and visit().role < Role.ANNOTATOR:
        raise PermissionError("save_label needs the role annotator; leave it out, or ask for the role")
    for upload in ("file", "label"):
        if arguments[upload]:
            check_upload(arguments[upload])
    check_source(arguments["image"], arguments["session_id"], arguments["file"], given.get("volume"))


def in_their_terms(arguments: dict[str, Any]) -> None:
    """Put what only we have into MONAI Label's terms: a volume sent ahead is an image, DICOM SEG the kind of a file.

    The job is the user's where a token told who that is, whatever the client calls itself.
    """
    options = json.loads(arguments["params"] or "{}")
    if options.get("volume") and not arguments["image"]:
        arguments["image"] = "volume"  # any name will do: the app takes the volume
    if arguments["output"] == "dicom_seg":
        options["result_extension"], arguments["output"] = ".dcm", "image"
    if visit().user:
        options["client_id"] = visit().user
    arguments["params"] = json.dumps(options)


def check_source(image: str, session_id: str, file: Any, volume: Any = None) -> None:
    """Check where the image of a request to infer comes from.

    Raises:
        FileNotFoundError: the studies lack the image, or the session is unknown or over.
        ValueError: nothing is named.
    """
    from monailabel.interfaces.utils.app import app_instance

    if not (image or session_id or file or volume):
        raise ValueError("the request names no image; give image=<id of a study>, a session_id, or a file")
    if image and not app_instance().datastore().get_image_uri(image):
        raise FileNotFoundError(f"image {image!r} is not among the studies; choose one of them or upload it")
    sessions = app_instance().sessions()  # None where the operator switched them off
    if session_id and (sessions is None or not sessions.get_session(session_id)):
        raise FileNotFoundError(f"session {session_id!r} is unknown or over; upload the image again")


def check_options(params: Mapping[str, Any] | None, forbidden: set[str]) -> None:
    """Check the options of a task; the body as a whole was checked when it came in.

    Raises:
        ValueError: they set what the server decides, or a run's name is none.
    """
    for options in (params or {}, *(each for each in (params or {}).values() if isinstance(each, dict))):
        for key in sorted(forbidden.intersection(options)):
            raise ValueError(f"params must not hold {key!r}; the server decides that")
        for key in ("name", "label_tag"):
            if options.get(key):
                check_name(key, str(options[key]))


def check_task(arguments: Mapping[str, Any], key: str, tasks: str) -> None:
    """Check a request for a background task, before a process is started for it.

    Raises:
        HTTPException: 404, there is no such task.
        ValueError: see ``check_options``.
    """
    from monailabel.interfaces.utils.app import app_instance

    known = getattr(app_instance(), tasks)
    if arguments[key] not in known:
        have = ", ".join(known) or "none"
        raise HTTPException(404, f"{key} {arguments[key]!r} is unknown; there is: {have}")
    check_options(arguments["params"], FORBIDDEN_FOR_TASKS)


def check_batch(arguments: Mapping[str, Any]) -> None:
    """Check a request to infer on many images. See ``check_task``."""
    check_task(arguments, "model", "_infers")


def check_scoring(arguments: Mapping[str, Any]) -> None:
    """Check a request to score. See ``check_task``."""
    check_task(arguments, "method", "_scoring_methods")


def at_once(arguments: dict[str, Any]) -> None:
    """Let the server itself score: a process of its own takes seconds to start, and knows of no other job."""
    arguments["run_sync"] = True


def one_device(arguments: dict[str, Any]) -> None:
    """Let a batch use one device: MONAI Label divides by the number of GPUs, which may be 0."""
    arguments["params"] = {**(arguments["params"] or {}), "multi_gpu": False}


def check_session(arguments: Mapping[str, Any], limit: int) -> None:
    """Check the files of a new session, and what an archive among them would unpack to.

    Raises:
        ValueError: a name is a path, or the archive is none, too large or has members outside.
    """
    for file in arguments["files"]:
        check_upload(file, any_kind=True)
    if arguments["uncompress"] and len(arguments["files"]) == 1:
        check_archive(arguments["files"][0].file, limit)


def check_archive(file: Any, limit: int) -> None:
    """Check an archive before anything of it is unpacked; the file stands at its beginning afterwards.

    Raises:
        ValueError: see ``check_session``.
    """
    try:
        if zipfile.is_zipfile(file):
            members = [(each.filename, each.file_size) for each in zipfile.ZipFile(file).infolist()]
        else:
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                members = [(each.name, each.size) for each in archive if each.isfile() or each.isdir() or _refuse(each)]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"the archive can't be read ({error}); send a zip or a tar") from error
    for name, _ in members:
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"the archive has a member {name[:100]!r} outside its folder; pack it anew")
    if sum(size for _, size in members) > limit:
        raise ValueError(f"the archive unpacks to more than {limit // 1024**2} MiB; send less")
    file.seek(0)


def _refuse(member: tarfile.TarInfo) -> bool:
    raise ValueError(f"the archive has a link or device {member.name[:100]!r}; send plain files")
