"""The stock Trainer: checkpoints hold the adapter alone, and a run that goes on equals one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from steerscope.errors import InputError
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import padded, prompts
from tests.tiny import tiny_model

TIED = {"tie_word_embeddings": True}
DATA = [
    {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.cat([torch.tensor([-100]), row[1:]])}
    for row in torch.randint(3, 64, (12, 6), generator=torch.Generator().manual_seed(3))
]
BATCH = padded(prompts(), "left")
# Its older name is deprecated where the newer one exists.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


class Stop(TrainerCallback):
    """A run that is killed: it stops for good after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def base(family: str = "llama", **overrides) -> torch.nn.Module:
    return tiny_model(family, **{**TIED, **overrides})


def steering_of(model, **options) -> SteeringModel:
    return get_steering_model(model, SteeringConfig(**{"sites": "resid_post", "rank": 3, "seed": 5, **options}))


def trainer_of(model, folder: Path, callbacks=(), **options) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "save_steps": 2,
        "save_strategy": "steps",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 11,
    }
    arguments = TrainingArguments(**{**settings, **options})
    return Trainer(model=model, args=arguments, train_dataset=DATA, eval_dataset=DATA[:4], callbacks=list(callbacks))


def killed(model, folder: Path, callbacks=(), **options) -> str:
    """Train until the process is gone, at the fifth step, and return the checkpoint that it leaves, of the fourth."""
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, folder, callbacks=[*callbacks, Stop(5)], **options).train()
    return str(folder / "checkpoint-4")


def adapter_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name != "adapter_config"}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("options", [{}, {"family": "loreft"}, {"positions": "prompt"}], ids=str)
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, options):
    whole = steering_of(base(), **options)
    start = adapter_of(whole)
    trainer_of(whole, tmp_path / "whole").train()
    expected = adapter_of(whole)
    assert any(not torch.equal(expected[name], start[name]) for name in start)

    checkpoint = killed(steering_of(base(), **options), tmp_path / "killed")
    # A new model, from the start, takes it up.
    again = steering_of(base(), **{**options, "seed": 6})
    trainer_of(again, tmp_path / "killed").train(resume_from_checkpoint=checkpoint)
    assert_same(adapter_of(again), expected)


def test_checkpoints_hold_the_adapter_alone(tmp_path):
    model = steering_of(base())
    assert model.base_model.lm_head.weight is model.base_model.model.embed_tokens.weight  # tied: the writer would raise
    trainer_of(model, tmp_path, max_steps=2).train()
    (weights,) = (tmp_path / "checkpoint-2").glob("*.safetensors")
    tensors = load_file(weights)
    names = {f"edits.{layer}-resid_post.{name}" for layer in (0, 1) for name in ("D", "U", "b")}
    assert set(tensors) == {*names, "adapter_config"}
    other = steering_of(base(), sites="0.resid_post")
    with pytest.raises(InputError, match=r"has unknown edits\.1-resid_post\.D"):
        trainer_of(other, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoints_and_saved_models_are_adapters(tmp_path):
    model = steering_of(base(), positions="prompt")
    model.set_strength(0.5)
    trainer = trainer_of(model, tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    with torch.no_grad():
        expected = model.eval()(**BATCH, prompt_lengths=torch.tensor([3, 3, 3])).logits
    plain = model.unload()
    for folder in (tmp_path / "run" / "checkpoint-2", tmp_path / "saved"):
        again = SteeringModel.from_pretrained(plain, folder)
        assert again.strength == 0.5
        assert again.steering_config.positions == "prompt"
        with torch.no_grad():
            assert torch.equal(again(**BATCH, prompt_lengths=torch.tensor([3, 3, 3])).logits, expected)
        again.unload()
    with pytest.raises(InputError, match="has fingerprint"):
        SteeringModel.from_pretrained(tiny_model("llama", seed=1, **TIED), tmp_path / "saved")


def test_checkpoints_that_cannot_stand_alone_are_refused(tmp_path):
    wrapped = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trainer_of(steering_of(wrapped), tmp_path / "lora", max_steps=2).train()
    with pytest.raises(InputError, match="a Trainer's checkpoint of edits on a LoRA"):
        SteeringModel.from_pretrained(base(), tmp_path / "lora" / "checkpoint-2")
    # One of an earlier version, which does not say what it is.
    trainer_of(steering_of(base()), tmp_path / "old", max_steps=2).train()
    weights = tmp_path / "old" / "checkpoint-2" / "model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if name != "adapter_config"}, weights)
    with pytest.raises(InputError, match="looks like a checkpoint of a Trainer"):
        SteeringModel.from_pretrained(base(), weights.parent)
    again = steering_of(base())
    trainer_of(again, tmp_path / "old").train(resume_from_checkpoint=str(weights.parent))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        SteeringModel.from_pretrained(base(), weights.parent)


def test_best_model_evaluation_and_checkpointed_gradients(tmp_path):
    model = steering_of(base(), positions="completion")
    trainer = trainer_of(
        model,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        **{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
        learning_rate=0.5,
    )
    trainer.train()
    best = min(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    assert len(model.edits) == 2


@pytest.mark.parametrize("trains_lora", [True, False])
def test_a_lora_underneath_resumes_too(tmp_path, trains_lora):
    def joint(seed: int) -> SteeringModel:
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"])
        wrapped = peft.get_peft_model(base(), config)
        if not trains_lora:
            wrapped.requires_grad_(False)
        return steering_of(wrapped)

    whole = joint(0)
    trainer_of(whole, tmp_path / "whole").train()
    checkpoint = killed(joint(0), tmp_path / "killed")
    again = joint(1 if trains_lora else 0)
    trainer_of(again, tmp_path / "killed").train(resume_from_checkpoint=checkpoint)
    expected = adapter_of(whole)
    assert any("lora_B" in name for name in expected) is trains_lora
    assert_same(adapter_of(again), expected)
    with torch.no_grad():
        assert torch.equal(again.eval()(**BATCH).logits, whole.eval()(**BATCH).logits)


def test_labels_that_the_trainer_keeps_to_itself(tmp_path):
    """With label smoothing; a collator that says where prompts end helps."""
    model = steering_of(base(), positions="last")
    trainer = trainer_of(model, tmp_path, label_smoothing_factor=0.1, max_steps=1)
    with pytest.raises(InputError, match="let its data_collator put prompt_lengths into every batch"):
        trainer.train()
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {**collate(rows), "prompt_lengths": torch.full((len(rows),), 3)}
    trainer.train()
    assert trainer.state.global_step == 1


class Dashboard(TrainerCallback):
    """What an integration does at the start and at every log, as those of wandb and trackio do."""

    seen: ClassVar[list] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        assert getattr(model, "peft_config", None) is None
        self.seen.append((model.config.to_dict()["model_type"], args.run_name))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(logs)


def test_report_to_is_the_trainers_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Dashboard, "seen", [])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "dashboard", Dashboard)
    options = {"report_to": "dashboard", "run_name": "mine", "logging_strategy": "steps", "logging_steps": 2}
    trainer_of(steering_of(base()), tmp_path, **options).train()
    begun, *logs = Dashboard.seen
    assert begun == ("llama", "mine")
    assert [sorted(one) for one in logs[:3]] == [sorted({"loss", "grad_norm", "learning_rate", "epoch"})] * 3


def test_a_run_is_logged_by_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    options = {"report_to": "trackio", "project": "steering", "run_name": "mine", "logging_strategy": "steps"}
    trainer_of(steering_of(base()), tmp_path / "run", logging_steps=2, **options).train()
    logged = SQLiteStorage.get_logs("steering", SQLiteStorage.get_runs("steering")[0])
    assert sum("train/loss" in one for one in logged) == 3
