"""What statements about many tokens share."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from steerscope.equivalence.propositions.block_tokens import data_sets, z_score
from steerscope.equivalence.propositions.parts import parameter_name
from tests.equivalence.propositions.trials import random_blocks


def test_rounding_is_no_deviation_where_nothing_is_left_in_any_draw():
    assert abs(z_score((3e-13, 2e-26), -1e-13)) < 0.01
    assert z_score((0.5, 0.01), 0.47) == pytest.approx(3.0)
    assert z_score((1e-3, 0.0), 0.0) > 1e5  # a share that is not 0 where every draw agrees is a deviation


@pytest.mark.parametrize("changed", ["mlp_write", "mlp_reads", "attn_write", "post_attention_layernorm"])
def test_what_stands_before_the_first_changed_map_is_not_computed_again(changed, monkeypatch):
    subject = random_blocks(0)
    block, computed = subject.block, []
    maps = {
        "mlp_write": [block.mlp_write],
        "mlp_reads": [*block.mlp_reads],
        "attn_write": [block.attn_write, block.mlp_write],
        "post_attention_layernorm": [block.module.post_attention_layernorm, block.mlp_write],
    }[changed]
    with subject.ready():
        data = data_sets(subject)[0]
        names = [parameter_name(subject, module) for module in maps]
        named = dict(subject.model.named_parameters())
        weights = {name: 1.1 * named[name] for name in names}
        inner = {id(p): name for name, p in block.module.named_parameters()}
        own = {inner[id(named[name])]: value for name, value in weights.items()}
        args, kwargs = data.arguments
        expected = functional_call(block.module, own, (data.stream, *args), kwargs)
        data.read_by(block.mlp_write)  # the maps are called once to see their order
        linear = nn.Linear.forward
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (computed.append(self), linear(self, x))[1])
        found = data.run(weights)
    torch.testing.assert_close(found, expected[0] if isinstance(expected, tuple) else expected, rtol=1e-12, atol=1e-12)
    order = [*block.attn_reads, block.attn_write, *block.mlp_reads, block.mlp_write]
    first = 0 if changed == "post_attention_layernorm" else order.index(maps[0])
    assert computed == order[first:]
    assert not any("forward" in vars(module) for module in order)
