"""The search of lambda, mu and iterations against evaluating each combination by itself."""

import numpy as np
import pytest
from tiny import ListSource

from dilated_affinity.datasets.classes import SHAPES
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import evaluate
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.search import RefinementSearch, search_refinement
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
    return search_refinement(model, source, (0, 1, 4), self_weights=(2, 9), mus=(7, 50))


@pytest.mark.parametrize("mu, self_weight", [(7.0, 2.0), (50.0, 9.0)])
def test_every_combination_is_what_evaluating_it_gives(model, source, search, mu, self_weight):
    expected = evaluate(model, source, (0, 1, 4), self_weight=self_weight, mu=mu).mean_iou
    row = search.mean_iou[search.mus.index(mu), search.self_weights.index(self_weight)]
    np.testing.assert_allclose(row, expected, rtol=1e-12)
    assert len(set(row)) > 1


def test_the_best_combination_is_named_in_flags():
    values = np.array([[[0.4, 0.5], [0.4, 0.3]], [[0.4, 0.5], [0.4, 0.61]]])
    search = RefinementSearch(3, (0, 2), (6.0, 20.0), (7.0, 50.0), values)
    assert search.best == {
        "propagation_iterations": 2,
        "self_weight": 20.0,
        "mu": 50.0,
        "mean_iou": 0.61,
    }
    last = search.table().splitlines()[-1]
    assert (
        last == "best: 61.00, by predict_main --propagation_iterations=2 --self_weight=20 --mu=50"
    )


def test_where_nothing_helps_the_best_is_not_to_propagate():
    values = np.full((1, 2, 2), [[0.5, 0.5], [0.5, 0.4]])
    search = RefinementSearch(3, (0, 2), (6.0, 20.0), (7.0,), values)
    assert search.best["propagation_iterations"] == 0


def test_the_figure_has_a_panel_for_each_mu_and_a_line_for_each_lambda(search):
    panels = refinement_search_figure(search).axes
    assert [panel.get_title() for panel in panels] == ["mu = 7", "mu = 50"]
    lines = panels[1].get_lines()
    assert len(lines) == 2
    np.testing.assert_allclose(lines[0].get_ydata(), 100 * search.mean_iou[1, 0])


@pytest.mark.parametrize(
    "values", [{"self_weights": ()}, {"self_weights": (-1,)}, {"mus": (1.0,)}, {"mus": ()}]
)
def test_values_out_of_range_are_refused(model, source, values):
    with pytest.raises(ConfigError, match="Received: self_weights="):
        search_refinement(model, source, **values)


def test_a_model_without_affinity_is_refused(source):
    model = DeepLabV3Plus(7, None, backbone="tiny", weights=None, filters=8)
    with pytest.raises(ConfigError, match="without affinity"):
        search_refinement(model, source)
