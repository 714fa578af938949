"""lm-evaluation-harness runs a steered model: the documented recipe on a task file of one's own."""

from __future__ import annotations

import json

import pytest
import torch

from steerscope import SteeringConfig, SteeringModel, get_steering_model, wrap_model
from steerscope.errors import InputError
from tests.byte_models import byte_model, byte_tokenizer
from tests.steering.cases import randomise

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": f"{a}+{b}=", "choices": ["1", "2", "33"], "answer": (a + b) % 3} for a in range(3) for b in (1, 2)
]
CHOICE = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATE = """
task: sums_generated
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, text in (("sums", CHOICE), ("sums_generated", GENERATE)):
        (folder / f"{name}.yaml").write_text(text.format(data=json.dumps(str(folder / "sums.jsonl"))))
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def steered(tmp_path, positions: str = "all") -> SteeringModel:
    """The recipe: a saved adapter on its model."""
    model = get_steering_model(byte_model(), SteeringConfig("resid_post", rank=2, positions=positions))
    randomise(model).save_pretrained(tmp_path / positions)
    model.unload()
    return SteeringModel.from_pretrained(wrap_model(byte_model(), byte_tokenizer()), tmp_path / positions)


def evaluated(model, tasks, name: str, batch_size: int = 3):
    from lm_eval.models.huggingface import HFLM

    task_model = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=batch_size)
    return lm_eval.simple_evaluate(
        model=task_model, tasks=[name], task_manager=tasks, bootstrap_iters=0, log_samples=True
    )["samples"][name]


@torch.no_grad()
def log_likelihood(model, prompt: str, answer: str) -> float:
    tokenizer = byte_tokenizer()
    context, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probs[place - 1, whole[place]]) for place in range(len(context), len(whole)))


def log_likelihoods(model, one) -> list[float]:
    return [log_likelihood(model, one["question"], choice) for choice in one["choices"]]


def test_choices_are_compared_with_the_edits_on(tasks, tmp_path):
    model = steered(tmp_path)
    samples = evaluated(model, tasks, "sums")
    assert len(samples) == len(QUESTIONS)
    for sample in samples:
        told = [float(resp[0]) for resp in sample["filtered_resps"]]
        assert told == pytest.approx(log_likelihoods(model, sample["doc"]), abs=1e-4)
        assert sample["acc"] == float(told.index(max(told)) == sample["doc"]["answer"])
        with model.disable_adapter():
            assert told != pytest.approx(log_likelihoods(model, sample["doc"]), abs=1e-3)


@pytest.mark.parametrize("positions", ["all", "prompt", "last:2"])
def test_texts_are_generated_as_by_the_model_itself(tasks, tmp_path, positions):
    model, tokenizer = steered(tmp_path, positions), byte_tokenizer()
    samples = evaluated(model, tasks, "sums_generated")
    assert len(samples) == len(QUESTIONS)
    for sample in samples:
        ids = torch.tensor([tokenizer(sample["doc"]["question"])["input_ids"]])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample["resps"][0][0] == text.split("\n")[0]


def test_likelihoods_refuse_positions_that_count_from_the_end_of_the_prompt(tasks, tmp_path):
    with pytest.raises(InputError, match="prompt"):
        evaluated(steered(tmp_path, "prompt"), tasks, "sums")
