"""What parts cells is fitted on boxes that the network did not learn from, and kept in the contract."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_isl.learning.network.contract import Task
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.recipes.finetune import ObjectsRecipe
from hpc_isl.stages.finetune import fit, left_out


@dataclass(frozen=True)
class Drawn:
    """A box whose labels are given instead of read."""

    labels_: np.ndarray
    field: tuple[str, str, str] = ("P01", "B02", "1")
    corners: tuple[int, int, int, int] = (0, 0, 0, 0)
    level: int = 0

    def drawn(self, level: int) -> np.ndarray:
        y0, x0, y1, x1 = self.corners
        return self.labels_[y0:y1, x0:x1]


def box(labels, well="B02"):
    return Drawn(labels, ("P01", well, "1"), (0, 0, *labels.shape))


def bars(seed=0):
    """(96, 64): sixteen long cells, four of which touch end to end."""
    labels = np.zeros((96, 64), np.uint32)
    for number in range(16):
        y, x = 6 + 22 * (number % 4), 4 + 15 * (number // 4)
        labels[y : y + (22 if number == 1 else 18), x : x + 7] = number + 1
    return labels


def predicted(labels, ripple=0.0, shift=0.0):
    """(2, y, x): the true map with ripples of a height, and the mask's logit."""
    y, x = np.indices(labels.shape)
    waves = ripple * np.sin(y) * np.cos(1.3 * x)
    distance = np.where(labels > 0, geodesic_map(labels) + waves, 0)
    return np.stack([distance, np.where(labels > 0, 3.0, -3.0) + shift]).astype(np.float32)


TASK = Task("cells", "cells", map="geodesic", h_maxima=40.0, min_area=4)
CELLS = ObjectsRecipe(kind="cells")


def pieces(*predictions):
    return [
        fit.LeftOut(fit.Piece(box(labels, f"B0{number}")), prediction)
        for number, (labels, prediction) in enumerate(predictions)
    ]


def test_where_all_heights_part_alike_the_usual_one_stands():
    task, scores = fit.fit(TASK, CELLS, pieces(*[(bars(), predicted(bars()))] * 3))
    assert (task.h_maxima, task.mask_threshold, task.min_area) == (40.0, 0.5, 4)
    assert scores["mAP"] == scores["mAP_usual"] > 0.98
    assert (scores["pieces"], scores["objects"]) == (3, 48)


def test_a_map_with_high_ripples_needs_a_greater_height():
    left_out = pieces(*[(bars(), predicted(bars(), ripple=60.0))] * 3)
    task, scores = fit.fit(TASK, CELLS, left_out)
    assert task.h_maxima == 60
    assert scores["mAP"] > scores["mAP_usual"] + 0.1
    assert dict(scores["mAP_by_h"])[task.h_maxima] > dict(scores["mAP_by_h"])[40.0]


def test_a_mask_that_is_too_wide_gets_a_threshold_and_what_the_user_gave_stands():
    wide = []
    for _ in range(3):
        prediction = predicted(bars())
        grown = np.pad(bars(), 2)
        for y in range(-2, 3):
            for x in range(-2, 3):
                grown = np.where(grown > 0, grown, np.roll(np.pad(bars(), 2), (y, x), (0, 1)))
        rim = (grown[2:-2, 2:-2] > 0) & (bars() == 0)
        prediction[1][rim] = 0.5  # a probability of 0.62
        wide.append((bars(), prediction))
    task, scores = fit.fit(TASK, CELLS, pieces(*wide))
    assert task.mask_threshold == 0.7
    assert scores["mAP"] > 0.98
    kept, _ = fit.fit(TASK, ObjectsRecipe(kind="cells", mask_threshold=0.45, min_area=4), pieces(*wide))
    assert (kept.mask_threshold, kept.min_area) == (0.45, 4)


def test_specks_are_dropped_by_an_area_in_pixels_and_micrometres():
    specked = predicted(bars())
    for x in range(1, 64, 4):
        specked[:, 0:2, x : x + 2] = np.array([200.0, 3.0])[:, None, None]
    task = Task("cells", "cells", map="geodesic", h_maxima=40.0, min_area=2, min_area_um2=0.5)
    fitted, scores = fit.fit(task, CELLS, pieces(*[(bars(), specked)] * 3))
    assert scores["mAP"] > 0.98
    assert 4 < fitted.min_area < 126
    assert fitted.min_area_um2 == pytest.approx(fitted.min_area / 4, rel=0.1)


@given(st.dictionaries(st.integers(-3, 3), st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1))
def test_no_setting_nearer_to_the_usual_one_is_within_a_standard_error_of_the_best(scores):
    chosen = fit.best(scores, abs)
    top = max(np.mean(own) for own in scores.values())
    leaders = [own for own in scores.values() if np.mean(own) == top]
    for setting, own in scores.items():
        if abs(setting) < abs(chosen):
            assert any(
                np.mean(np.subtract(leader, own)) > np.std(np.subtract(leader, own), ddof=1) / 2
                for leader in leaders
            )


def test_boxes_are_dealt_by_field_and_one_box_is_halved_with_a_strip_between():
    three = [box(bars(), well) for well in ("B02", "B02", "B03", "B04")]
    folds = left_out.deal(three)
    assert [[piece.box.field[1] for piece in fold] for fold in folds] == [["B02", "B02", "B04"], ["B03"]]
    two = left_out.deal([box(bars()), box(bars())])
    assert [len(fold) for fold in two] == [1, 1], "boxes of one field alone are dealt singly"
    [[upper], [lower]] = left_out.deal([box(bars())])
    assert upper.box.corners[0] == 0
    assert lower.box.corners[2] == 96
    assert lower.box.corners[0] - upper.box.corners[2] >= 18, "no cell reaches over the strip"
    assert left_out.deal([]) == []
    assert left_out.deal([box(np.ones((30, 20), np.uint32))]) == [], "one object fills it all"


def test_what_the_cut_between_halves_divides_counts_in_neither():
    [[upper], [lower]] = left_out.deal([box(bars())])
    whole = predicted(bars())
    for half in (upper, lower):
        y0, x0, y1, x1 = half.box.corners
        own = fit.LeftOut(half, whole[:, y0:y1, x0:x1])
        # Half a cell's map has its peak elsewhere, and would count as wrong.
        spoilt = own.prediction.copy()
        spoilt[0, half.edge[1], :] = 255
        _, scores = fit.fit(TASK, CELLS, [fit.LeftOut(half, spoilt)])
        assert scores["mAP"] > 0.98
        assert 0 < scores["objects"] < 12
