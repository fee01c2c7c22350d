"""The search of lambda, mu and iterations against evaluating each combination by itself."""

import numpy as np
import pytest
from helpers.tiny import ListSource

from dilated_affinity.datasets.classes import SHAPES
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.search import RefinementSearch, search_refinement
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.visualization import refinement_search_figure

RATES = ((1, 1), (2, 2))


@pytest.fixture(scope="module")
def model():
    model = DeepLabV3Plus(7, RATES, backbone="tiny", weights=None, filters=8, separable=False)
    rng = np.random.default_rng(0)
    for name in ("semantic_logits", "affinity_logits"):
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.normal(0, 2, kernel.shape))
    return model


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(1)
    examples = []
    for number, size in enumerate([(24, 33), (31, 20), (17, 40)]):
        label = rng.integers(0, 7, size, dtype=np.uint8)
        label[0] = 255
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        examples.append({"image": image, "label": label, "id": str(number)})
    return ListSource(examples, SHAPES)


@pytest.fixture(scope="module")
def search(model, source):
    return search_refinement(
        model, source, (0, 1, 4), (2, 9), (7, 50), thresholds=(0, 0.5), symmetric=(False, True)
    )


@pytest.mark.parametrize(
    "refinement", [Refinement(10, 2.0, 7.0), Refinement(10, 9.0, 50.0, 0.5, True)], ids=str
)
def test_every_combination_equals_its_evaluation(model, source, search, refinement):
    expected = evaluate(model, source, (0, 1, 4), refinement=refinement).mean_iou
    row = search.mean_iou[search.refinements.index(refinement)]
    np.testing.assert_allclose(row, expected, rtol=1e-12)
    assert len(set(row)) > 1


def test_the_best_combination_is_named_in_flags():
    tried = Refinement(), Refinement(10, 20.0, 50.0, 1.0, True)
    search = RefinementSearch(3, (0, 2), tried, np.array([[0.4, 0.5], [0.4, 0.61]]))
    assert search.best == Refinement(2, 20.0, 50.0, 1.0, True)
    assert search.to_json()["best"] == {
        "propagation_iterations": 2,
        "self_weight": 20.0,
        "mu": 50.0,
        "affinity_threshold": 1.0,
        "symmetric_affinity": True,
        "mean_iou": 0.61,
    }
    assert search.table().splitlines()[-1] == (
        "best: 61.00, by predict_main --propagation_iterations=2 --self_weight=20 --mu=50 "
        "--affinity_threshold=1 --symmetric_affinity"
    )


def test_without_a_gain_the_best_has_0_iterations():
    values = np.array([[0.5, 0.5], [0.5, 0.4]])
    search = RefinementSearch(3, (0, 2), (Refinement(), Refinement(mu=50.0)), values)
    assert search.best.iterations == 0


def test_the_figure_has_a_panel_for_each_mu_and_tau_and_a_line_for_the_rest(search):
    panels = refinement_search_figure(search).axes
    titles = [f"mu = {mu}, tau = {tau}" for tau in (0, 0.5) for mu in (7, 50)]
    assert [panel.get_title() for panel in panels] == titles
    lines = {line.get_label(): line.get_ydata() for line in panels[3].get_lines()}
    assert set(lines) == {"2", "9", "2, symmetric", "9, symmetric"}
    row = search.refinements.index(Refinement(10, 9.0, 50.0, 0.5, True))
    np.testing.assert_allclose(lines["9, symmetric"], 100 * search.mean_iou[row])


@pytest.mark.parametrize(
    "values",
    [{"self_weights": ()}, {"self_weights": (-1,)}, {"mus": (1.0,)}, {"mus": ()}]
    + [{"thresholds": (float("inf"),)}, {"symmetric": ()}],
    ids=str,
)
def test_values_out_of_range_are_refused(model, source, values):
    with pytest.raises(ConfigError, match="Received: "):
        search_refinement(model, source, **values)


def test_a_model_without_affinity_is_refused(source):
    model = DeepLabV3Plus(7, None, backbone="tiny", weights=None, filters=8)
    with pytest.raises(ConfigError, match="without affinity"):
        search_refinement(model, source)
