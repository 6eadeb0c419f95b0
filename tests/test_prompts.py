import re
from collections import Counter
from fnmatch import fnmatchcase

import pytest

from lorkd_monailabel import prompts
from lorkd_monailabel.departments import departments, structure, structures
from lorkd_monailabel.prompts import resolve

# The classes of TotalSegmentator's task "total", version 2.
TOTALSEGMENTATOR = """
    spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
    lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right
    esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left
    kidney_cyst_right sacrum vertebrae_S1 heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right
    subclavian_artery_left common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left
    brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava
    portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right
    humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right
    hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left
    gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right
    iliopsoas_left iliopsoas_right brain skull sternum costal_cartilages
""".split()
TOTALSEGMENTATOR += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
TOTALSEGMENTATOR += [f"vertebrae_{a}{n}" for a, z in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, 1 + z)]
LEFT_LOBES = ["left lung upper lobe", "left lung lower lobe"]
RIGHT_LOBES = ["right lung upper lobe", "right lung middle lobe", "right lung lower lobe"]
PLURALS = dict(
    pair.split(":")
    for pair in "vertebra:vertebrae vertebrae:vertebrae femur:femora humerus:humeri scapula:scapulae".split()
)


def names(text, department="auto"):
    """The canonical names a text resolves to; all of it must be understood."""
    targets, refused = resolve(text, department)
    assert refused == []
    return [each.structure.name for each in targets]


def refusal(text, department="auto"):
    targets, (refused,) = resolve(text, department)
    assert targets == []
    return refused


def plural(name):
    """The plural of the last word that is one: "left ribs 7", "left hip bones"."""
    *head, last = name.split()
    if last.isdigit():
        return f"{plural(' '.join(head))} {last}"
    endings = ((r"y$", "ies"), (r"x$", "xes"), (r"us$", "uses"), (r"s$", "s"), (r"$", "s"))
    ending, replacement = next((old, new) for old, new in endings if re.search(old, last))
    return " ".join([*head, PLURALS.get(last) or re.sub(ending, replacement, last, count=1)])


def test_all_117_classes_of_totalsegmentator_are_understood():
    found = [names(each) for each in TOTALSEGMENTATOR]
    assert len(TOTALSEGMENTATOR) == 117
    assert all(len(each) == 1 for each in found)
    assert len({each[0] for each in found}) == 117


def test_totalsegmentator_names_stand_for_what_they_say():
    assert names("hip_right, iliac_vena_left") == ["right hip bone", "left common iliac vein"]
    assert names("clavicula_left, autochthon_left") == ["left clavicle", "left autochthonous back muscle"]


@pytest.mark.parametrize("name", structures())
def test_every_name_in_every_spelling(name):
    side, _, rest = name.partition(" ")
    spellings = [name, name.upper(), name.title(), name.replace(" ", "_"), name.replace(" ", "-"), plural(name)]
    spellings += [f"  {name} ", f"the {name}", plural(name).upper()]
    if side in ("left", "right"):
        letter = side[0]
        spellings += f"{rest} {side}|{rest}_{side}|{rest} ({side})|{rest}, {side}|{rest} {letter.upper()}".split("|")
        spellings += f"{letter}. {rest}|{letter}t {rest}|{side}-sided {rest}|{side} {plural(rest)}".split("|")
    assert {spelling: names(spelling) for spelling in spellings} == {spelling: [name] for spelling in spellings}


def test_every_synonym_is_understood():
    wrong = [text for each in structures().values() for text in each.synonyms if names(text) != [each.name]]
    assert wrong == []


@pytest.mark.parametrize("department", ["auto", "AUTO"])
def test_a_target_keeps_its_phrase(department):
    targets, refused = resolve("Kidney, left;  VCI\nspleen", department)
    assert [(each.phrase, each.structure.name) for each in targets] == [
        ("Kidney, left", "left kidney"),
        ("VCI", "inferior vena cava"),
        ("spleen", "spleen"),
    ]
    assert targets[0].structure is structure("left kidney")
    assert refused == []


# Phrases that mean the same, and their structures.
READINGS = """
    kidney | kidneys | both kidneys | bilateral kidney | left and right kidney = left kidney, right kidney
    left/right kidneys | kidney, left and right | kidney, left, right = left kidney, right kidney
    femurs | femora = left femur, right femur
    parotids | parotid glands = left parotid gland, right parotid gland
    seventh ribs | rib 7 = left rib 7, right rib 7
    left rib 7 | rib L 7 | 7th left rib | left seventh rib | rib 7 left = left rib 7
    L3 | l3 | vertebra L3 | L3 vertebra | L-3 | L 3 | third lumbar vertebra = L3 vertebra
    upper lobes = left lung upper lobe, right lung upper lobe
    atrial appendage = left atrial appendage
    lien = spleen
    bladder = urinary bladder
    gall bladder = gallbladder
    IVC | VCI | vena cava inferior = inferior vena cava
    Ösophagus | oesophagus = esophagus
    atlas = C1 vertebra
    Th12 = T12 vertebra
    RML | middle lobe = right lung middle lobe
    LUL | upper lobe of the left lung = left lung upper lobe
    left innominate vein = left brachiocephalic vein
    left shoulder blade = left scapula
    LV | left ventricle = left ventricle cavity
    myocardium = left ventricle myocardium
    brain stem = brainstem
    peroneus longus = fibularis longus
    portal vein and splenic vein = portal vein and splenic vein
    vertebrae | vertebra = vertebrae
    hippocampi = anterior hippocampus, posterior hippocampus
    right glutei = right gluteus maximus, right gluteus medius, right gluteus minimus
    left iliac vessels = left common iliac artery, left common iliac vein
    floating ribs, right = right rib 11, right rib 12
    ventricle cavities = left ventricle cavity, right ventricle cavity
    right lung = right lung
"""


@pytest.mark.parametrize("line", READINGS.strip().splitlines())
def test_phrases_and_their_structures(line):
    phrases, _, expected = line.strip().partition(" = ")
    for phrase in phrases.split(" | "):
        assert names(phrase) == expected.split(", "), phrase


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lungs", LEFT_LOBES + RIGHT_LOBES),
        ("both lungs", LEFT_LOBES + RIGHT_LOBES),
        ("left lung", LEFT_LOBES),
        ("lobes of the right lung", RIGHT_LOBES),
        ("ribs", [f"{side} rib {n}" for side in ("left", "right") for n in range(1, 13)]),
        ("left ribs", [f"left rib {n}" for n in range(1, 13)]),
        ("lumbar vertebrae", [f"L{n} vertebra" for n in range(1, 6)]),
        ("thoracic vertebrae", [f"T{n} vertebra" for n in range(1, 13)]),
        ("cervical spine", [f"C{n} vertebra" for n in range(1, 8)]),
    ],
)
def test_one_phrase_for_several_structures(text, expected):
    assert names(text) == expected


def test_separators_and_empty_phrases():
    expected = ["liver", "spleen", "pancreas", "stomach"]
    assert names("liver; spleen, pancreas\nstomach") == expected
    assert names(";; liver ,\r\n, spleen;pancreas,,stomach;") == expected


def test_a_comma_before_a_side_does_not_separate():
    assert names("kidney, left, spleen; adrenal gland, R") == ["left kidney", "spleen", "right adrenal gland"]
    assert names("spleen, left kidney") == ["spleen", "left kidney"]


def test_a_side_in_a_phrase_of_its_own_is_refused():
    assert refusal("left").message == "'left' is a side without a structure; write it beside one"
    targets, refused = resolve("kidney; left")
    assert [each.structure.name for each in targets] == ["left kidney", "right kidney"]
    assert [each.phrase for each in refused] == ["left"]


def test_and_joins_what_is_understood():
    assert names("liver and spleen") == ["liver", "spleen"]
    assert names("left kidney & right femur + L 1") == ["left kidney", "right femur", "L1 vertebra"]
    assert refusal("liver and spoon").phrase == "liver and spoon"


def test_a_side_for_one_of_two_is_refused():
    refused = refusal("right kidney and adrenal gland")
    assert "names the side of one structure only" in refused.message
    assert "right adrenal gland" in refused.candidates


def test_a_structure_is_kept_once_for_the_first_phrase():
    targets, _ = resolve("left kidney; kidneys; left kidney")
    assert [each.structure.name for each in targets] == ["left kidney", "right kidney"]
    assert [each.phrase for each in targets] == ["left kidney", "kidneys"]
    assert refusal("spoon; spoon, spoon").phrase == "spoon"


NEARLY_RIGHT = """
    kidny = left kidney
    right kindey = right kidney
    splean = spleen
    liver tumour = liver
    psoas = left iliopsoas
    right atrial appendage = left atrial appendage
    L4-L5 = L4 vertebra
    T12/L1 = T12 vertebra
    ventricles = left ventricle cavity
"""


@pytest.mark.parametrize("line", NEARLY_RIGHT.strip().splitlines())
def test_candidates_for_what_is_nearly_right(line):
    text, _, first = line.strip().partition(" = ")
    refused = refusal(text)
    assert refused.candidates[0] == first
    assert 1 <= len(refused.candidates) <= 3
    assert refused.message.startswith(f"{text!r} is not a known structure; did you mean {first!r}")


def test_no_candidate_is_better_than_a_wild_one():
    refused = refusal("xyzzy")
    assert refused.candidates == ()
    assert refused.message == "'xyzzy' is not a known structure; choose a name from the list of structures"


def test_a_side_where_there_is_none():
    assert refusal("left liver").message == "'left liver' is not divided into sides here; write 'liver'"
    assert refusal("both livers").candidates == ("liver",)
    assert refusal("left hippocampus").candidates == ("anterior hippocampus", "posterior hippocampus")


def test_in_its_department():
    assert names("liver; kidneys", " Abdomen ") == ["liver", "left kidney", "right kidney"]


def test_in_another_department():
    targets, (refused,) = resolve("liver; bladder", "abdomen")
    assert [each.structure.name for each in targets] == ["liver"]
    assert refused.message == "'bladder' belongs to pelvis, not to abdomen; choose pelvis or auto"
    assert refused.candidates == ()
    assert "belongs to head and neck, not to lower limb" in refusal("larynx", "lower limb").message
    both = refusal("liver and bladder", "spine").message
    assert both == "'liver and bladder' belongs to abdomen and pelvis, not to spine; choose auto"


def test_candidates_are_of_the_department():
    assert refusal("livr", "abdomen").candidates == ("liver",)
    assert refusal("livr", "head and neck").candidates == ()
    assert "is not a known structure of head and neck" in refusal("livr", "head_and_neck").message
    assert refusal("left liver", "thorax").candidates == ()


@pytest.mark.parametrize("text", ["", "  \n", ";,;"])
def test_an_empty_prompt(text):
    with pytest.raises(ValueError, match="the prompt is empty; name at least one structure"):
        resolve(text)


def test_a_prompt_too_long():
    assert names("liver" + " " * 3995) == ["liver"]
    with pytest.raises(ValueError, match="the prompt has 4001 characters, at most 4000 are read"):
        resolve("liver" + " " * 3996)


def test_an_unknown_department():
    with pytest.raises(ValueError, match="department 'chest' is unknown"):
        resolve("heart", "chest")


@pytest.mark.parametrize("text", ["\x00\x1b[31m", "🫀", "肝臓", "'; DROP TABLE", "..", "and", "((", "½", "a" * 4000])
def test_messages_are_one_short_line(text):
    for refused in resolve(text)[1]:
        assert refused.message.isprintable()
        assert len(refused.message) < 260


@pytest.mark.parametrize("text", [";".join(f"ab{i}" for i in range(600)), "kidney " * 570, "and " * 1000, "& " * 2000])
def test_hostile_prompts_are_refused(text):
    targets, refused = resolve(text)
    assert targets == []
    assert len(refused) == len(set(text.strip().split(";")))


def test_groups_are_in_one_department_and_each_pattern_finds_something():
    for patterns in prompts.GROUPS.values():
        found = [each for each in structures().values() if any(fnmatchcase(each.name, pattern) for pattern in patterns)]
        assert all(any(fnmatchcase(each.name, pattern) for each in found) for pattern in patterns)
        assert len({each.department for each in found}) == 1


def test_no_phrase_stands_for_two_groups():
    phrases = Counter(phrase for texts in prompts.GROUPS for phrase in texts)
    assert max(phrases.values()) == 1
    assert all(names(f"all {phrase}") for phrase in phrases)


def test_each_department_understands_its_own_names():
    for region in departments():
        text = "; ".join(each.name for each in region.structures)
        assert names(text, region.id) == [each.name for each in region.structures]
