"""The front door's --conf keys."""

import pytest

from lorkd_monailabel.app import CONF
from lorkd_monailabel.front_door.options import MIB, door_options


def test_by_default_everything_is_shut():
    options = door_options({})
    assert (options.tokens, options.open, options.allow, options.origins) == (None, False, frozenset(), ())
    assert (options.upload_bytes, options.params_bytes) == (4096 * MIB, 100 * 1024)


def test_what_is_given_is_taken():
    conf = {
        "allow": "proxy, models",
        "origins": "https://a.example/,http://b:81",
        "open": "TRUE",
        "max_upload_mib": "1",
    }
    options = door_options(conf)
    assert options.allow == {"proxy", "models"}
    assert options.origins == ("https://a.example", "http://b:81")
    assert (options.open, options.upload_bytes) == (True, MIB)
    assert set(conf) | {"tokens", "max_params_kib"} <= set(CONF)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("allow", "everything", "--conf allow everything is unknown; choose of proxy, models, reload"),
        ("origins", "*", "must be like https://viewer.example"),
        ("origins", "https://a/b", "must be like"),
        ("open", "maybe", "must be true or false"),
        ("max_upload_mib", "0", "must be a whole number"),
        ("max_upload_mib", "-1", "must be a whole number"),
        ("max_params_kib", "1e3", "must be a whole number"),
    ],
)
def test_what_is_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        door_options({key: value})
