"""Train a small model of one of several layouts from scratch: models that know little, to be taught more.

    python -m studies.small_models gpt_neox FOLDER --tasks flat,recall,compare

What it is trained on it knows afterwards ("flat" is ListOps without nesting); what it does not, such as nested ListOps,
adaptation can teach it. The folder is an ordinary transformers model with its tokenizer, which has one token per word,
letter and digit of all generated tasks: ``steerscope rank FOLDER`` takes it like any other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steerscope.errors import InputError
from steerscope.experiments.tasks import GeneratedTask, ListOps
from steerscope.experiments.tasks.formats import GENERATED
from steerscope.experiments.tasks.formats.listops import FORM
from steerscope.experiments.tasks.formats.recall import FORM as RECALL
from steerscope.experiments.tasks.formats.recall import Recall
from steerscope.experiments.tasks.generator import DIGITS, LETTERS
from steerscope.experiments.tasks.supervised import SupervisedSequence, supervise
from steerscope.experiments.tasks.task import TaskExample, folded
from steerscope.files import written_aside
from steerscope.folders import Kind, require_folder_for
from studies.programs import parser_of, program

_WORDS = ["<bos>", "<eos>", "<pad>", "<unk>", *"[]=(),:+", "MIN", "MAX", "MED", "SM", "min", "max", "twice"]
_WORDS += [*DIGITS, *LETTERS, *map(str.upper, LETTERS)]
LAYERS, WIDTH = 14, 64
# The whole text is learned as well, so that every position knows what texts look like; its part is small, since most
# of it is random.
_TEXT = 0.1
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def _settings(family: str, layers: int, width: int) -> dict[str, Any]:
    common = {
        "vocab_size": len(_WORDS),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    if family == "gpt2":
        return common | {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 128}
    return common | {
        "hidden_size": width,
        "intermediate_size": (4 if family == "gpt_neox" else 3) * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        **({"head_dim": width // 4, "query_pre_attn_scalar": width // 4} if family == "gemma2" else {}),
    }


# GPT-NeoX: attention and MLP side by side. Gemma-2: norms before and after both. GPT-2: learned positions, a plain MLP.
FAMILIES = ("gpt_neox", "gemma2", "gpt2", "llama")


def small_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per bracket, operator, word, letter and digit of the generated tasks."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\[\]=(),:+]|[A-Z]+|[a-z]+|\d"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _all_recalled(question: str, value: int) -> TaskExample:
    """``b=3 d=7 b=3 d=7``: every pair twice, the second time in the alphabet's order.

    One text asks as many questions as it has pairs. Asked one at a time, recall is hardly learned in minutes.

    Returns:
        The example.
    """
    pairs = question.split()[:-1]
    again = " ".join(sorted(pairs))
    return TaskExample(f"{' '.join(pairs)} {again[:2]}", again[2:], answer=again[-1], content=folded(question))


def task_called(name: str) -> GeneratedTask:
    """Return a generated task; ``flat`` is ListOps without nesting, ``recall_all`` asks for all keys,
    one after the other.

    Raises:
        InputError: There is no generated task of that name.
    """
    if name == "flat":
        # Longer lists than those of the task, so that enough flat ones are different.
        return GeneratedTask(FORM, ListOps(max_depth=1, max_args=6))
    if name == "recall_all":
        return GeneratedTask(RECALL, Recall(), _all_recalled)
    if name not in GENERATED:
        raise InputError(f"task {name!r} is not generated; expected one of flat, recall_all, {', '.join(GENERATED)}.")
    return GENERATED[name]


def train_small(
    family: str,
    folder: Path,
    *,
    tasks: Sequence[str] = ("flat",),
    steps: int = 2000,
    batch_size: int = 64,
    rate: float = 1e-3,
    layers: int = LAYERS,
    width: int = WIDTH,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, float]:
    """Train a small model of ``family`` and save it.

    Args:
        family: One of :data:`FAMILIES`.
        folder: Where the model goes.
        tasks: What it is trained on, in equal parts; see :func:`task_called`.
        steps: Optimizer steps.
        batch_size: Examples per step.
        rate: Peak learning rate.
        layers: Blocks.
        width: Channels of the residual stream.
        dtype: Data type of the saved weights; accuracies are those of the weights as saved.
        seed: Seed of weights and examples.

    Returns:
        Its accuracy on 500 held-out examples, by task.

    Raises:
        InputError: The family or a task is unknown, or the folder holds something else than a model.

    Cost: about five minutes on two cores with the defaults.
    """
    if family not in FAMILIES:
        raise InputError(f"there is no small model of {family!r}; expected one of {', '.join(FAMILIES)}.")
    known = {name: task_called(name) for name in tasks}
    require_folder_for(folder, Kind.MODEL)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_settings(family, layers, width)))
    tokenizer = small_tokenizer()
    each = min(steps * batch_size // len(known) + 1, 40_000)
    pool = [row for task in known.values() for row in _rows(task, "train", each, seed, tokenizer)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    since = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 100, 1.0, 2 * (1 - step / steps))
        chosen = torch.randint(len(pool), (batch_size,), generator=generator).tolist()
        answer, text, _ = _losses(model, [pool[i] for i in chosen])
        optimizer.zero_grad(set_to_none=True)
        (answer + _TEXT * text).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            seconds, loss = time.process_time() - since, float(answer.detach())
            print(f"step {step}, {seconds:.0f} s of CPU: loss of the answer {loss:.3f}", file=sys.stderr, flush=True)
    model.to(DTYPES[dtype]).eval()
    with written_aside(folder, "the model", last=("config.json",)) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    model.float()
    with torch.no_grad():
        right = {
            name: _losses(model, _rows(task, "test", 500, seed, tokenizer))[2].double().mean()
            for name, task in known.items()
        }
    return {name: float(share) for name, share in right.items()}


def _rows(
    task: GeneratedTask, part: str, count: int, seed: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[SupervisedSequence, ...]:
    examples = task.split(part, count, seed)  # type: ignore[arg-type]
    return supervise(examples, tokenizer, None, ends=False).sequences


def _losses(model: Any, rows: Sequence[SupervisedSequence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean over texts of their supervised tokens' loss, that of all tokens, and which last one is right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[2] * (width - len(row.ids))] for row in rows])
    lengths, starts = torch.tensor([[len(row.ids), row.first_target] for row in rows]).T
    places = torch.arange(width)
    mask = places < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    answers = (mask & (places >= starts[:, None]))[:, 1:]
    last = torch.arange(len(rows)), lengths - 2
    right = logits[last].argmax(-1) == ids[:, 1:][last]
    return ((losses * answers).sum(1) / answers.sum(1)).mean(), losses[mask[:, 1:]].mean(), right


@program("small_models")
def main() -> None:
    """Train from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default="flat")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    family, folder, tasks = given.pop("family"), given.pop("folder"), given.pop("tasks").split(",")

    print(json.dumps(train_small(family, folder, tasks=tasks, **given)))


if __name__ == "__main__":
    raise SystemExit(main())
