"""The table of floor classes: FineGym's ids and subsets, and sentences that go on from "A gymnast"."""

import pytest

from finephys.data.gym99 import GYM99_FLOOR, floor_class


def test_ids_and_subsets_are_finegyms() -> None:
    assert list(GYM99_FLOOR) == list(range(6, 41))
    subset_of = {label: known.subset for label, known in GYM99_FLOOR.items()}
    assert {label for label, subset in subset_of.items() if subset == "FX-JUMP"} == set(range(6, 17))
    assert {label for label, subset in subset_of.items() if subset == "FX-TURN"} == set(range(17, 24))
    assert {label for label, subset in subset_of.items() if subset == "FX-SALTO"} == set(range(24, 41))
    assert len({known.name for known in GYM99_FLOOR.values()}) == 35
    assert GYM99_FLOOR[10].name == "switch leap"
    assert GYM99_FLOOR[33].name == "salto backward stretched with 2 twist"


def test_every_class_has_phrasings_of_its_own() -> None:
    sentences = [sentence for known in GYM99_FLOOR.values() for sentence in known.phrasings]
    assert len(set(sentences)) == len(sentences)
    assert all(len(known.phrasings) >= 3 for known in GYM99_FLOOR.values())
    # "A gymnast ..., in a blue hall.": a verb first, no full stop.
    assert all(sentence[0].islower() and sentence.split()[0].rstrip(",").endswith("s") for sentence in sentences)
    assert not any(sentence.endswith(".") for sentence in sentences)


def test_a_class_is_found_by_name_and_by_id() -> None:
    assert floor_class("switch leap") is floor_class(10) is floor_class("10")
    with pytest.raises(ValueError, match="unknown floor class 'backflip', wanted the id or name of one of: 6 switch"):
        floor_class("backflip")
