"""What --shard gathers at once: the layers of every family, and what cannot be told apart."""

import pytest
from torch import nn
from transformers import AutoModel

from archs.sharding import check_apart, transformer_layers
from core.errors import UserError
from tests.conftest import tiny_config, tiny_language_model

LAYERS = {"bert": 2, "distilbert": 2, "deberta-v2": 2, "modernbert": 2, "albert": 1}
LAYERS |= {"llama": 2, "gpt2": 2, "t5": 4, "bart": 4}


def model_of(family: str) -> nn.Module:
    if family in ("llama", "gpt2", "t5", "bart"):
        return tiny_language_model(family)
    return AutoModel.from_config(tiny_config(family))


@pytest.mark.parametrize("family", LAYERS)
def test_layers_are_the_numbered_ones_and_hold_most_of_the_model(family):
    model = model_of(family)
    layers = transformer_layers(model)
    assert len(layers) == LAYERS[family]
    inside = {id(param) for layer in layers for param in layer.parameters()}
    outside = [name for name, param in model.named_parameters() if id(param) not in inside]
    words = ("embed", "norm", "Norm", "pooler", "wte", "wpe", "ln_f", "shared", "head", "mapping")
    assert all(any(word in name for word in words) for name in outside), outside
    check_apart(layers, model)  # tied embeddings are in no layer


def test_a_weight_of_two_layers_is_refused():
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.Linear(2, 2))
    layers = transformer_layers(model)
    check_apart(layers, model)
    layers[1].weight = layers[0].weight
    with pytest.raises(UserError, match="weight of a Linear is the weight of another part too"):
        check_apart(layers, model)


def test_a_weight_of_a_layer_and_of_what_is_outside_is_refused():
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 2))
    model[1].weight = model[0][0].weight
    with pytest.raises(UserError, match="drop --shard"):
        check_apart(transformer_layers(model), model)
