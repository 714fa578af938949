"""What PEFT trains under edits stays trained, and what is saved loads again bit-equal; or it is refused at the door."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from steerscope.errors import InputError
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from steerscope.steering.beneath import write_peft
from steerscope.steering.peft_types import OPTIONS, PROMPT_TYPES, REFUSED, SUPPORTED, UNMERGED
from tests.steering.cases import close, hooks_of, randomise
from tests.steering.peft_cases import TYPES, Case, options_of, special

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "steering.md"
EDITS = SteeringConfig(("0.mlp_out", "0.attn_heads", "1.resid_post"), rank=2)
CASES = [*(Case(kind, kind) for kind in TYPES), *special()]
# PEFT warns of what these tests do on purpose, differently in every version; ours are checked where they belong.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def no_model_card(monkeypatch):
    """PEFT writes a page about the adapter with every save: a third of the time of these tests, and no part of them."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)


def wrapped(case: Case, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return peft.get_peft_model(case.model(), case.config())


def wrapped_or_skip(case: Case) -> nn.Module:
    """PEFT's wrapper; what PEFT itself refuses (a missing package, a combination) cannot come under edits."""
    try:
        return wrapped(case)
    except (ImportError, TypeError, ValueError) as error:
        pytest.skip(f"PEFT refuses: {error}")


def trained_in(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(steering: SteeringModel, case: Case, steps: int = 2) -> set[str]:
    """Take steps of an optimizer; return the names of what did not move."""
    parameters = trained_in(steering)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.05, weight_decay=0)
    steering.train()
    for _ in range(steps):
        optimizer.zero_grad()
        steering(**case.inputs, labels=case.inputs["input_ids"]).loss.backward()
        optimizer.step()
    steering.eval()
    return {name for name, p in parameters.items() if torch.equal(before[name], p.detach())}


@torch.no_grad()
def logits(model: nn.Module, case: Case) -> torch.Tensor:
    found: torch.Tensor = model(**case.inputs).logits
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(model: nn.Module) -> str | None:
    """What the door says of a model, and that it left it alone."""
    hooks, flags = hooks_of(model), [p.requires_grad for p in model.parameters()]
    try:
        get_steering_model(model, EDITS).unload()
    except InputError as error:
        assert (hooks_of(model), [p.requires_grad for p in model.parameters()]) == (hooks, flags)
        return str(error)
    return None


def require_refusal(case: Case, message: str) -> None:
    assert f"PEFT's {case.kind}" in message, message
    assert re.search(r"under edits.*(Take|Leave) .* or put the edits on the plain model\.$", message), message


def there_and_back(case: Case, model: nn.Module, folder: Path, twice: bool = True) -> SteeringModel:
    """Train under edits, save, load onto a fresh model and perhaps save again; return what was trained."""
    theirs = {f"base_model.{name}" for name in trained_in(model)}
    steering = randomise(get_steering_model(model, EDITS), size=0.1)
    assert set(trained_in(steering)) == theirs | {name for name, _ in steering.named_parameters() if "edits." in name}
    assert not train(steering, case), "some of what is trainable is not trained"
    steering.save_pretrained(folder / "first")
    again = SteeringModel.from_pretrained(case.model(), folder / "first")
    if twice:
        again.save_pretrained(folder / "second")
        assert files(folder / "first") == files(folder / "second")
    assert torch.equal(logits(again, case), logits(steering, case))
    return steering


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_round_trip(case, tmp_path):
    model = wrapped_or_skip(case)
    if (message := refusal(model)) is not None:
        require_refusal(case, message)
        assert case.kind not in SUPPORTED or case.options
        return
    assert case.kind in SUPPORTED
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    steering = there_and_back(case, model, tmp_path)
    expected, trained = logits(steering, case), set(trained_in(steering))
    # A checkpoint of the stock Trainer is this state, on a model built again in another process with other draws.
    rebuilt = get_steering_model(wrapped(case, seed=6), EDITS).eval()
    rebuilt.load_state_dict({name: value.clone() for name, value in steering.state_dict().items()})
    assert torch.equal(logits(rebuilt, case), expected)
    storages = [value.data_ptr() for value in steering.state_dict().values()]
    assert len(storages) == len(set(storages)), "the Trainer cannot write tensors that share memory"
    if case.kind in PROMPT_TYPES:
        with pytest.raises(InputError, match=f"PEFT's {case.kind} cannot be trained on from its files"):
            SteeringModel.from_pretrained(case.model(), tmp_path / "first", is_trainable=True)
    else:
        onward = SteeringModel.from_pretrained(case.model(), tmp_path / "first", is_trainable=True).eval()
        assert set(trained_in(onward)) == trained
        assert torch.equal(logits(onward, case), expected)
    assert steering.unload() is model
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert not torch.equal(logits(model, case), expected)


@pytest.mark.parametrize("kind", sorted(set(TYPES) & SUPPORTED))
def test_every_option_comes_back_or_is_refused(kind, tmp_path):
    tried = 0
    for number, case in enumerate(options_of(kind)):
        try:
            model = wrapped(case)
        except (ImportError, TypeError, ValueError, AttributeError):
            continue  # PEFT refuses it
        tried += 1
        if (message := refusal(model)) is not None:
            assert f"PEFT's {kind} with" in message or "PEFT does not save them" in message, (case.name, message)
        else:
            try:
                there_and_back(case, model, tmp_path / str(number), twice=False)
            except AssertionError as error:
                raise AssertionError(case.name) from error
    assert tried


def test_every_type_is_known_or_refused():
    assert not SUPPORTED & set(REFUSED)
    unknown = set(TYPES) - SUPPORTED - set(REFUSED)
    for kind in unknown | {"TOMORROW"}:
        config = peft.LoraConfig(target_modules=["q_proj"])
        model = peft.get_peft_model(Case("", "LORA").model(), config)
        config.peft_type = kind
        with pytest.raises(InputError, match=f"PEFT's {kind} does not go under edits: it was not tried"):
            get_steering_model(model, EDITS)


def test_an_option_of_tomorrow_is_refused():
    from dataclasses import dataclass

    @dataclass
    class Later(peft.LoraConfig):
        thicken: int = 0

    for value in (0, 1):
        model = peft.get_peft_model(Case("", "LORA").model(), Later(target_modules=["q_proj"], thicken=value))
        message = refusal(model)
        assert (message is None) == (value == 0)
    assert "PEFT's LORA with thicken=1 was not tried under edits" in str(message)


IN_ANOTHER_PROCESS = """
import sys, torch
from steerscope.steering import SteeringModel
from tests.steering.peft_cases import Case
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    kind = folder.rsplit("/", 1)[1]
    case = Case(kind, kind)
    model = SteeringModel.from_pretrained(case.model(), folder + "/first").eval()
    with torch.no_grad():
        torch.save(model(**case.inputs).logits, folder + "/logits.pt")
"""


def test_another_process_gets_the_same_logits(tmp_path):
    expected = {}
    for kind in ("LORA", "ADALORA", "TRAINABLE_TOKENS", "VERA", "PREFIX_TUNING", "LN_TUNING", "SHIRA"):
        case = Case(kind, kind)
        expected[kind] = logits(there_and_back(case, wrapped(case), tmp_path / kind), case)
    code = [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS, *(str(tmp_path / kind) for kind in expected)]
    subprocess.run(code, check=True, cwd=ROOT)
    for kind, found in expected.items():
        assert torch.equal(torch.load(tmp_path / kind / "logits.pt"), found), kind


MERGED = [case for case in CASES if case.kind in SUPPORTED]


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case.name)
def test_merged_or_refused_with_nothing_changed(case):
    model = wrapped_or_skip(case).eval()
    if refusal(model) is not None:
        pytest.skip("refused at the door, see above")
    generator = torch.Generator().manual_seed(0)
    for parameter in trained_in(model).values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    base = model.get_base_model()
    steering = randomise(get_steering_model(model, SteeringConfig(("0.mlp_out", "1.attn_heads"), rank=2)).eval())
    expected = logits(steering, case)
    values = {name: value.clone() for name, value in base.state_dict().items()}
    if case.kind in UNMERGED or case.name in ("alora", "tied-on-head", "tied-on-embeddings"):
        with pytest.raises(InputError, match=r"Keep it (and the edits )?as (an )?adapter"):
            steering.merge_and_unload(make_biases=True)
        assert all(torch.equal(value, values[name]) for name, value in base.state_dict().items())
        assert torch.equal(logits(steering, case), expected)
        return
    merged = steering.merge_and_unload(make_biases=True)
    assert merged is base
    assert hooks_of(merged) == 0
    assert not [name for name, _ in merged.named_modules() if "base_layer" in name or "modules_to_save" in name]
    close(logits(merged, case), expected, 1e-4)  # sums in another order, in float32


def test_the_page_lists_every_type():
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (`[A-Z0-9_`, ]+`) \| (yes|no)\b", text, re.MULTILINE))
    listed = {name: told for names, told in rows.items() for name in re.findall(r"`([A-Z0-9_]+)`", names)}
    assert {name for name, told in listed.items() if told == "yes"} == SUPPORTED
    assert {name for name, told in listed.items() if told == "no"} == set(REFUSED)
    for name, reason in REFUSED.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert reason in row
    for option in OPTIONS:
        assert any(line.startswith(f"| `{option.name}` |") and option.reason in line for line in text.splitlines())


@pytest.mark.parametrize("kept", ["beneath", "alone"])
def test_same_adapter_same_bytes(kept, tmp_path):
    """PEFT keeps names as a set, whose order is another one in every process: files are written in one order."""
    (case,) = (case for case in CASES if case.name == "all-linear")
    model = wrapped(case)
    if kept == "beneath":
        get_steering_model(model, EDITS).save_pretrained(tmp_path)
    else:
        write_peft(model, tmp_path / "lora", "default", "their/name")
    told = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert len(told["target_modules"]) == 14
    assert told["target_modules"] == sorted(told["target_modules"])
    assert set(told["target_modules"]) == model.peft_config["default"].target_modules
    assert told["base_model_name_or_path"] == ("their/name" if kept == "alone" else "LlamaForCausalLM")
    assert model.peft_config["default"].base_model_name_or_path != "their/name"
