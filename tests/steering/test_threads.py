"""A model used from several threads gives each of them the numbers that it gives one alone."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.models import edited, find_sites, reading
from tests.steering.cases import prompts, steered
from tests.tiny import VOCAB, tiny_model

THREADS, CALLS = 4, 240


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call: Callable[[int], Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(CALLS)))


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (1, 4 + i % 7), generator=generator) for i in range(CALLS)]


def all_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert sum(not torch.equal(a, b) for a, b in zip(found, expected, strict=True)) == 0


@pytest.mark.parametrize("rule", ["all", "last"])
def test_passes_of_a_steered_model(rule):
    model, given = steered("linear", sites=("0.resid_mid", "1.mlp_out"), positions=rule), rows()

    def call(i: int) -> Tensor:
        with torch.no_grad():
            return model(input_ids=given[i], prompt_lengths=torch.tensor([1 + i % 4])).logits

    all_equal(in_threads(call), [call(i) for i in range(CALLS)])


@pytest.mark.parametrize("rule", ["last"])
def test_generation(rule):
    model, given = steered("linear", positions=rule), rows()

    def call(i: int) -> Tensor:
        lookup = {"prompt_lookup_num_tokens": 2} if i % 2 else {}
        return model.generate(input_ids=given[i], max_new_tokens=3, do_sample=False, pad_token_id=2, **lookup)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(call, range(40)))
    all_equal(found, [call(i) for i in range(40)])


def test_edits_and_readings_are_those_of_the_thread_that_entered():
    model = tiny_model("llama", torch.float64)
    site_map, given = find_sites(model), rows()

    @torch.no_grad()
    def call(i: int) -> Tensor:
        ids = given[i]
        if i % 3 == 0:
            return model(input_ids=ids).logits
        with (
            edited(model, site_map, {"0.resid_mid": lambda x: x * 0.01 * i, "1.mlp_in": torch.ones_like}),
            reading(site_map, ["1.resid_post"]) as seen,
        ):
            logits = model(input_ids=ids).logits
        return torch.cat([logits.flatten(), seen["1.resid_post"].flatten()])

    all_equal(in_threads(call), [call(i) for i in range(CALLS)])


def test_gradients():
    """Each thread trains its own edit of one model, whose blocks run again in backward."""
    model = tiny_model("llama", torch.float64).train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    site_map, given = find_sites(model), rows()
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def call(i: int) -> Tensor:
        vector = torch.full((16,), 0.1 * (1 + i % 5), dtype=torch.float64, requires_grad=True)
        with edited(model, site_map, {"0.mlp_out": lambda x: vector + 0 * x, "1.mlp_hidden": lambda x: vector[0] * x}):
            model(input_ids=given[i], use_cache=False).logits.square().mean().backward()
        assert vector.grad is not None
        return vector.grad

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(call, range(32)))
    all_equal(found, [call(i) for i in range(32)])


def test_training_a_steered_model_with_checkpointing_under_passes_of_others():
    model = steered("linear", sites=("0.mlp_out", "1.mlp_hidden"), positions="last").train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    given, lock = rows(), threading.Lock()

    def call(i: int) -> Tensor:
        lengths = torch.tensor([1 + i % 4])
        if i % 2:
            with torch.no_grad():
                return model(input_ids=given[i], prompt_lengths=lengths, use_cache=False).logits
        with lock:  # gradients of one model add up
            model.zero_grad()
            model(input_ids=given[i], prompt_lengths=lengths, use_cache=False).logits.square().mean().backward()
            return model.edit_at("0.mlp_out").U.grad.clone()

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(call, range(32)))
    all_equal(found, [call(i) for i in range(32)])


@torch.no_grad()
def test_disable_adapter_is_for_its_own_thread():
    model, row = steered("linear", positions="last"), prompts()[0][None]

    def call() -> Tensor:
        return model(input_ids=row, prompt_lengths=torch.tensor([6])).logits

    steered_logits = call()
    with model.disable_adapter(), ThreadPoolExecutor(1) as pool:
        plain = model(input_ids=row).logits
        assert torch.equal(pool.submit(torch.no_grad()(call)).result(), steered_logits)
        assert not torch.equal(plain, steered_logits)
    assert torch.equal(call(), steered_logits)


@torch.no_grad()
def test_a_lora_that_another_thread_switched_off_is_not_taken_for_one_that_acts():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = steered("linear", peft.get_peft_model(tiny_model("llama", torch.float64), config), positions="last")
    row = prompts()[0][None]

    def call() -> Tensor:
        with torch.no_grad():
            return model(input_ids=row, prompt_lengths=torch.tensor([6])).logits

    expected = call()
    with ThreadPoolExecutor(1) as pool:
        with model.disable_adapter():
            with pytest.raises(InputError, match="PEFT switches the LoRA underneath off for all threads"):
                pool.submit(call).result()
            with pytest.raises(InputError, match="PEFT switches the LoRA"):
                pool.submit(model.disable_adapter().__enter__).result()
        with model.disable_adapter(keep_lora=True):
            assert torch.equal(pool.submit(call).result(), expected)
        # Switched in the middle of a pass: neither one number nor the other.
        reached, switched = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            reached.set()
            switched.wait(20)

        handle = model.site_map.blocks[1].module.register_forward_pre_hook(wait)
        running = pool.submit(call)
        assert reached.wait(20)
        with model.disable_adapter():
            switched.set()
            with pytest.raises(InputError, match="PEFT switches the LoRA"):
                running.result()
        handle.remove()
        assert torch.equal(pool.submit(call).result(), expected)
    assert torch.equal(call(), expected)


@torch.no_grad()
def test_what_was_switched_off_in_forward_stays_off_in_backward():
    """Blocks run again after the context was left."""
    model = steered("linear", sites=("0.mlp_out", "1.mlp_hidden"), positions="last").train()
    for parameter in model.get_base_model().model.layers.parameters():
        parameter.requires_grad_(True)

    def gradient() -> Tensor:
        model.zero_grad()
        with torch.enable_grad():
            with model.disable_adapter():
                logits = model(input_ids=prompts()[0][None], use_cache=False).logits
            logits.square().mean().backward()
        return model.get_base_model().model.layers[1].mlp.down_proj.weight.grad.clone()

    expected = gradient()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(gradient(), expected)


def test_a_block_called_by_itself():
    model = steered("linear", positions="last", sites=("0.resid_post",))
    stream = torch.zeros(1, 3, 16, dtype=torch.float64)
    places = model.get_base_model().model.rotary_emb(stream, torch.arange(3)[None])
    model(input_ids=prompts()[0][None], prompt_lengths=torch.tensor([6]))
    with pytest.raises(InputError, match="a block was called by itself, where positions 'last' cannot be told"):
        model.site_map.blocks[0].module(stream, position_embeddings=places)


def test_backward_in_another_thread_edits_the_tokens_of_its_forward():
    """As on accelerators, where torch computes gradients in threads of its own and blocks run again there."""
    model, row = steered("nonlinear", sites=("0.mlp_out", "1.mlp_hidden"), positions="last").train(), prompts()[0][None]

    def gradients(threads: ThreadPoolExecutor | None) -> list[Tensor]:
        model.zero_grad()
        losses = [
            model(input_ids=row, prompt_lengths=torch.tensor([n]), use_cache=False).logits.square().mean()
            for n in (2, 5)
        ]
        for loss in losses:
            loss.backward() if threads is None else threads.submit(loss.backward).result()
        return [p.grad.clone() for p in model.edits.parameters()]

    expected = gradients(None)
    for reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        with ThreadPoolExecutor(1) as pool:
            for found, wanted in zip(gradients(pool), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("with_lora", [False, True])
@torch.no_grad()
def test_contexts_of_overlapping_coroutines_are_their_own(with_lora):
    base = tiny_model("llama", torch.float64)
    if with_lora:
        base = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model, row = steered("linear", base), prompts()[0][None]

    def call() -> Tensor:
        with torch.no_grad():
            return model(input_ids=row).logits

    before = call()
    with model.disable_adapter(keep_lora=True):
        plain = call()
    seen: list[int] = []
    inner = model.get_base_model()

    async def off(*others: asyncio.Event) -> None:
        mine, until = others
        with (
            model.disable_adapter(keep_lora=True),
            edited(inner, model.site_map, {"1.mlp_out": lambda x: seen.append(1) or torch.zeros_like(x)}),
        ):
            mine.set()
            await until.wait()
            seen.clear()
            assert torch.equal(call(), plain)
            assert torch.equal(await asyncio.to_thread(call), plain)
            assert len(seen) == 2

    async def run() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(off(first, second))
        await first.wait()
        seen.clear()
        assert torch.equal(call(), before)
        assert not seen
        done = asyncio.Event()
        other = asyncio.create_task(off(second, done))  # entered second, left last
        await one
        assert torch.equal(call(), before)
        done.set()
        await other
        assert torch.equal(call(), before)
        if with_lora:
            with model.disable_adapter():
                task = asyncio.create_task(asyncio.sleep(0, None))
                await task
                late = asyncio.create_task(asyncio.to_thread(call))
            with pytest.raises(InputError, match="was left since"):
                await late

    asyncio.run(run())
    assert torch.equal(call(), before)


@pytest.mark.parametrize("with_lora", [False, True])
@torch.no_grad()
def test_half_consumed_generators_leave_nothing_switched_off(with_lora):
    base = tiny_model("llama", torch.float64)
    if with_lora:
        base = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model, row = steered("linear", base), prompts()[0][None]

    def outputs() -> Iterator[Tensor]:
        with model.disable_adapter():
            while True:
                yield model(input_ids=row).logits

    before = model(input_ids=row).logits
    one, other = outputs(), outputs()
    plain = next(one)
    assert torch.equal(next(other), plain)
    one.close()
    assert torch.equal(next(other), plain)
    other.close()
    assert torch.equal(model(input_ids=row).logits, before)
    third = outputs()
    next(third)
    with ThreadPoolExecutor(1) as pool:  # as a garbage collector may
        pool.submit(third.close).result()
    assert torch.equal(model(input_ids=row).logits, before)
