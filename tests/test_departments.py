import inspect
import json
from itertools import combinations
from pathlib import Path

import pytest

from lorkd_monailabel.departments import (
    DEPARTMENT_IDS,
    LATERALITY,
    department,
    departments,
    parse,
    structure,
    structures,
)

# The structures of the development cases, by department.
CASES = {
    "brain": """
        anterior hippocampus, brainstem, posterior hippocampus
    """,
    "head and neck": """
        larynx, left parotid gland, mandible, right parotid gland
    """,
    "thorax": """
        aorta, costal cartilages, esophagus, left autochthonous back muscle, left lung lower lobe, left lung
        upper lobe, left rib 10, left rib 11, left rib 12, left rib 7, left rib 8, left rib 9, left ventricle
        cavity, left ventricle myocardium, right autochthonous back muscle, right lung, right lung lower lobe,
        right lung middle lobe, right lung upper lobe, right rib 10, right rib 11, right rib 12, right rib 7,
        right rib 8, right rib 9, right ventricle cavity
    """,
    "abdomen": """
        colon, duodenum, gallbladder, inferior vena cava, left adrenal gland, left iliopsoas, left kidney,
        liver, pancreas, portal vein and splenic vein, right adrenal gland, right iliopsoas, right kidney,
        small bowel, spleen, stomach
    """,
    "pelvis": """
        left common iliac artery, left common iliac vein, prostate, right common iliac artery, right common
        iliac vein, urinary bladder
    """,
    "spine": """
        L1 vertebra, L2 vertebra, L3 vertebra, L4 vertebra, L5 vertebra, S1 vertebra, T11 vertebra, T12
        vertebra, intervertebral discs, sacrum, spinal cord, vertebrae
    """,
    "lower limb": """
        extensor digitorum longus, fibularis longus, lateral gastrocnemius, left femur, left gluteus maximus,
        left gluteus medius, left gluteus minimus, left hip bone, medial gastrocnemius, right femur, right
        gluteus maximus, right gluteus medius, right gluteus minimus, right hip bone, soleus, tibialis
        anterior, tibialis posterior
    """,
}
# SNOMED CT has no public code for these parts; they carry the code of the whole.
COARSE_CODES = {"5366008", "102292000"}


def record(**changes):
    """A valid structure, changed; None removes a key."""
    full = {
        "name": "left kidney",
        "side": "left",
        "snomed": "64033007",
        "snomed_meaning": "Kidney",
        "color": [1, 2, 3],
        "synonyms": ["kidney_left"],
    } | changes
    return {key: value for key, value in full.items() if value is not None}


def text_of(*abdomen):
    rooms = [{"id": each, "name": each.replace("_", " "), "structures": []} for each in DEPARTMENT_IDS]
    rooms[3]["structures"] = list(abdomen)
    return json.dumps(rooms)


def verhoeff_is_zero(code):
    """The check digit of SNOMED CT: the dihedral group of order 10, from its definition."""

    def times(a, b):
        turned = (a + b) % 5 if a < 5 else (a - b) % 5
        return turned + 5 * ((a < 5) != (b < 5))

    def permuted(digit, position):
        for _ in range(position % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        return digit

    total = 0
    for position, digit in enumerate(reversed(code)):
        total = times(total, permuted(int(digit), position))
    return total == 0


def test_eight_departments_in_their_order():
    assert tuple(each.id for each in departments()) == (
        "brain",
        "head_and_neck",
        "thorax",
        "abdomen",
        "pelvis",
        "spine",
        "upper_limb",
        "lower_limb",
    )
    assert [each.name for each in departments()][1] == "head and neck"
    assert all(each.structures for each in departments())


@pytest.mark.parametrize("name", ["head and neck", "head_and_neck", "Head and Neck", " HEAD-AND-NECK "])
def test_department_by_id_or_name(name):
    assert department(name).id == "head_and_neck"


def test_unknown_department_names_the_eight():
    with pytest.raises(ValueError, match=r"'chest' is unknown; choose one of brain, head_and_neck, .*lower_limb"):
        department("chest")


@pytest.mark.parametrize("name", list(CASES))
def test_names_of_the_cases_are_in_their_department(name):
    known = {each.name for each in department(name).structures}
    assert {" ".join(each.split()) for each in CASES[name].split(",")} <= known


def test_the_cases_name_84_structures():
    assert sum(len(text.split(",")) for text in CASES.values()) == 84


def test_structure_by_canonical_name_only():
    kidney = structure("left kidney")
    assert (kidney.department, kidney.side, kidney.snomed) == ("abdomen", "left", "64033007")
    assert LATERALITY[kidney.side] == ("7771000", "Left")
    with pytest.raises(ValueError, match="structure 'kidney_left' is unknown; take a name from"):
        structure("kidney_left")


def test_structures_are_all_and_read_only():
    assert len(structures()) == sum(len(each.structures) for each in departments()) == 137
    assert all(name == each.name for name, each in structures().items())
    with pytest.raises(TypeError):
        structures()["tail"] = structure("liver")


def test_upper_limb_has_structures():
    assert {each.name for each in department("upper_limb").structures} >= {
        "left humerus",
        "right scapula",
        "left clavicle",
    }


def test_sides_come_in_pairs_that_share_their_anatomy():
    alone = {"left atrial appendage", "right lung", "right lung middle lobe"}
    for each in structures().values():
        if each.side and each.name not in alone:
            other = structure(each.name.replace(each.side, {"left": "right", "right": "left"}[each.side]))
            assert (each.snomed, each.snomed_meaning, each.department) == (
                other.snomed,
                other.snomed_meaning,
                other.department,
            )


def test_left_ventricle_is_no_side_of_the_patient():
    assert structure("left ventricle cavity").side is None
    assert structure("left ventricle cavity").snomed != structure("right ventricle cavity").snomed


def test_code_and_side_tell_structures_apart():
    keys = [(each.snomed, each.side) for each in structures().values() if each.snomed not in COARSE_CODES]
    assert len(keys) == len(set(keys))
    assert {each.department for each in structures().values() if each.snomed in COARSE_CODES} == {"brain", "lower_limb"}


def test_a_code_has_one_meaning():
    assert len({(each.snomed, each.snomed_meaning) for each in structures().values()}) == len(
        {each.snomed for each in structures().values()}
    )


def test_check_digits_of_the_codes():
    assert verhoeff_is_zero("2363")  # the textbook example: 236 has the check digit 3
    assert not verhoeff_is_zero("2633")
    wrong = [each.name for each in structures().values() if not verhoeff_is_zero(each.snomed)]
    assert wrong == []
    assert all(verhoeff_is_zero(code) for code, _ in LATERALITY.values())


@pytest.mark.parametrize("region", departments(), ids=lambda each: each.id)
def test_colors_of_a_department_are_told_apart(region):
    for one, two in combinations(region.structures, 2):
        apart = sum((a - b) ** 2 for a, b in zip(one.color, two.color, strict=True)) ** 0.5
        assert apart >= 32, (one.name, two.name)


def test_synonyms_are_several_hundred_and_none_is_shared():
    synonyms = [text.casefold() for each in structures().values() for text in each.synonyms]
    assert len(synonyms) == len(set(synonyms)) > 500


def test_one_structure_a_line():
    """A colleague adds a structure by one line."""
    lines = Path(inspect.getfile(parse)).with_suffix(".json").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith('  {"name": ') for line in lines) == len(structures())
    assert len(lines) == len(structures()) + 2 * len(DEPARTMENT_IDS) + 2


def test_a_valid_record():
    (kidney,) = parse(text_of(record()))[3].structures
    assert (kidney.name, kidney.department, kidney.color) == ("left kidney", "abdomen", (1, 2, 3))
    assert kidney.synonyms == ("kidney_left",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": [1, 2]}, "color .* of structure 'left kidney' must be three whole numbers"),
        ({"color": [1, 2, 256]}, "color .* of structure 'left kidney' must be three whole numbers"),
        ({"color": [1, 2, True]}, "color .* of structure 'left kidney' must be three whole numbers"),
        ({"color": "red"}, "color 'red' of structure 'left kidney' must be three whole numbers"),
        ({"side": "middle"}, "side 'middle' of structure 'left kidney' must be left, right or null"),
        ({"side": ["left"]}, "side .* of structure 'left kidney' must be left, right or null"),
        ({"side": "right"}, "side 'right' of structure 'left kidney' must be the first word"),
        ({"side": None}, 'structure \'left kidney\' has no side; add "side": "left"'),
        ({"snomed": "64O33007"}, "snomed '64O33007' of structure 'left kidney' must be a string of 6 to 18 digits"),
        ({"snomed": 64033007}, "snomed 64033007 of structure 'left kidney' must be a string"),
        ({"snomed_meaning": ""}, "snomed_meaning '' of structure 'left kidney' must be text"),
        ({"name": "left  kidney"}, "name 'left  kidney' of structure 'left  kidney' must be text without"),
        ({"name": None}, "structure None has no name; add it"),
        ({"color": None}, "structure 'left kidney' has no color; add it"),
        ({"colour": [1, 2, 3]}, "structure 'left kidney' has the unknown key colour; remove it"),
        ({"synonyms": "kidney_left"}, "synonyms 'kidney_left' of structure 'left kidney' must be a list"),
        ({"synonyms": [7]}, "synonym 7 of structure 'left kidney' must be text"),
        ({"synonyms": ["a", "a"]}, "a name of structure 'left kidney' is repeated"),
        ({"synonyms": ["left kidney"]}, "a name of structure 'left kidney' is repeated"),
        ({"synonyms": ["kidney, left"]}, "name 'kidney, left' of structure 'left kidney' must have no , or ;"),
    ],
)
def test_a_bad_record_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        parse(text_of(record(**changes)))


def test_a_name_twice():
    with pytest.raises(ValueError, match="structure 'left kidney' stands twice"):
        parse(text_of(record(), record()))


def test_a_synonym_of_two_structures():
    lookalike = record(name="left ren", synonyms=["Kidney Left"])
    with pytest.raises(ValueError, match="synonym 'Kidney Left' of structure 'left ren' belongs to 'left kidney' too"):
        parse(text_of(record(), lookalike))


def test_a_structure_that_is_no_object():
    with pytest.raises(ValueError, match="structure 'liver' of department 'abdomen' must be an object"):
        parse(text_of("liver"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{,}]", "line 2 of departments.json must be JSON"),
        ("{}", "must be a list of departments"),
        ("[1]", "must be a list of departments"),
        ('[{"id": "brain"}]', "must be .*'head_and_neck'.* in this order"),
        (text_of().replace('"structures": []', '"structures": {}'), "structures of department 'brain' must be a list"),
        (text_of().replace('"structures": []', '"rooms": []'), "department 'brain' has no structures"),
        (text_of().replace('"name": "brain", ', '"name": 3, '), "name 3 of department 'brain' must be text"),
    ],
)
def test_a_bad_file(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
