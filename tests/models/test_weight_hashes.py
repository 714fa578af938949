"""The two hashes of a model's weights, written out by hand."""

import hashlib

import peft
import torch

from steerscope.models.weight_hashes import digest_of_parameters, fingerprint_of
from tests.tiny import tiny_model


def test_the_exact_hash_is_over_names_and_bytes():
    model = tiny_model("llama")
    parts = [name.encode() + value.detach().numpy().tobytes() for name, value in model.named_parameters()]
    assert digest_of_parameters(model) == hashlib.sha256(b"".join(parts)).hexdigest()
    with torch.no_grad():
        model.lm_head.weight[0, 0] *= 1 + 1e-6
    assert digest_of_parameters(model) != hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_fingerprint_is_over_names_shapes_and_rounded_bytes():
    model = tiny_model("llama")
    parts = [
        f"{name}{tuple(value.shape)}".encode() + value.detach().bfloat16().view(torch.uint8).numpy().tobytes()
        for name, value in model.named_parameters()
    ]
    found = fingerprint_of(model)
    assert found == hashlib.sha256(b"".join(parts)).hexdigest()
    assert fingerprint_of(model, frozenset(["lm_head.weight"])) == hashlib.sha256(b"".join(parts[:-1])).hexdigest()
    assert fingerprint_of(model.double()) == found
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["down_proj"]))
    assert fingerprint_of(wrapped) == found
    assert digest_of_parameters(wrapped) != digest_of_parameters(tiny_model("llama"))
