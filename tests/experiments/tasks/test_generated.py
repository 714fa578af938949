"""Generated tasks: answers by rules of their own, balanced; parts that never overlap; one token after the prompt."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steerscope import InputError
from steerscope.experiments.tasks import get_task
from steerscope.experiments.tasks.formats import GENERATED
from steerscope.experiments.tasks.formats.compare import Compare
from steerscope.experiments.tasks.formats.edits import Twice
from steerscope.experiments.tasks.formats.generated import SIZES
from steerscope.experiments.tasks.formats.recall import Recall
from steerscope.experiments.tasks.task import majority
from steerscope.models.tokens import completion_tokens
from tests.experiments.tasks.rows import ALL

COMPARE = ("compare", "compare_next", "compare_other", "compare_second")
NEW = ("recall", "recall_capital", "recall_plus", *COMPARE, "twice")


def solve(prompt: str, name: str = "") -> str:
    """Answer a prompt by other means than the generator's."""
    if pairs := re.findall(r"([a-z])=(\d)", prompt):
        key, _, more = prompt.split()[-1].removesuffix("=").partition("+")
        return str(int(dict(pairs)[key.lower()]) + int(more or 0))[-1]
    if numbers := re.fullmatch(r"(min|max)\((.*)\)=", prompt):
        found = sorted(numbers[2].split(","))
        found = found if numbers[1] == "min" else found[::-1]
        asked = {"compare_other": -1, "compare_second": 1}.get(name, 0)
        return str(int(found[asked]) + (name == "compare_next"))[-1]
    (twice,) = [letter for letter, times in Counter(prompt.removesuffix(" twice:").split()).items() if times == 2]
    return f" {twice}"


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_share_nothing_for_any_seed(name):
    task = get_task(name)
    parts = {part: [one for seed in (1, 2) for one in task.split(part, 200, seed)] for part in ALL}
    for examples in parts.values():
        assert all(task.form.parse(one.completion, one) == one.answer for one in examples)
        assert len({one.content for one in examples[:200]}) == 200
    asked = {part: {"".join(sorted(one.content)) for one in examples} for part, examples in parts.items()}
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]
    assert majority(parts["test"])[1] < 0.2
    assert len(task.split("validation")) == SIZES["validation"]


@pytest.mark.parametrize("name", NEW)
def test_answers_are_right(name):
    for one in get_task(name).split("train", 300, 4):
        assert one.completion == solve(one.prompt, name) == one.choices[one.answer_index]


def test_draws_are_pinned():
    # Numbers in tables hang on these draws: they must not change between versions or machines.
    drawn = {name: [one.prompt + one.completion for one in get_task(name).split("test", 2)] for name in NEW}
    assert drawn == {
        "recall": ["m=5 y=2 d=7 e=9 y=2", "r=3 v=2 m=2 w=2 r=3"],
        "recall_capital": ["m=5 y=2 d=7 e=9 Y=2", "r=3 v=2 m=2 w=2 R=3"],
        "recall_plus": ["m=5 y=2 d=7 e=9 y+1=3", "r=3 v=2 m=2 w=2 r+1=4"],
        "compare": ["min(9,6,4,7,5)=4", "max(4,9,1,9,6)=9"],
        "compare_next": ["min(8,3,3,6,7)=4", "min(7,3,3,4,8)=4"],
        "compare_other": ["max(6,6,4,4,6)=4", "max(4,9,1,9,6)=1"],
        "compare_second": ["min(5,4,5,4,4)=4", "min(4,5,1,3,2)=2"],
        "twice": ["n y b m w y twice: y", "r d r v s g twice: r"],
    }


@pytest.mark.parametrize("name", NEW)
def test_answers_are_uniform(name):
    examples = get_task(name).split("train", 5200, seed=2)
    counts, kinds = Counter(one.answer_index for one in examples), len(examples[0].choices)
    chi_square = sum((counts[k] - 5200 / kinds) ** 2 / (5200 / kinds) for k in range(kinds))
    # Uniform draws exceed this about once in a thousand (9 and 25 degrees of freedom); the draw is fixed.
    assert chi_square < {10: 27.9, 26: 52.7}[kinds]


@pytest.mark.parametrize("name", NEW)
def test_no_place_gives_the_answer_away(name):
    examples = get_task(name).split("train", 6000, seed=3)
    for place in range(len(examples[0].prompt)):
        seen = defaultdict(Counter)
        for one in examples[:3000]:
            seen[one.prompt[place]][one.answer] += 1
        right = sum(
            bool(seen[one.prompt[place]]) and seen[one.prompt[place]].most_common(1)[0][0] == one.answer
            for one in examples[3000:]
        )
        assert right / 3000 < 0.45, (place, right / 3000)


# How tokenizers cut a text before merging: GPT-2 and GPT-NeoX; SmolLM2 (single digits); Llama 3.
CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["listops", *NEW])
def test_an_answer_is_one_token_after_the_prompt(name, cut):
    # Trained on the very texts, it has a token for whatever the cuts leave together.
    examples = get_task(name).split("test", 200)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = CUTS[cut]
    texts = [one.prompt + one.completion for one in examples]
    trainer = trainers.BpeTrainer(vocab_size=5000, min_frequency=1, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for one, text in zip(examples, texts, strict=True):
        before, after = completion_tokens(one.prompt, one.completion, tokenizer)
        assert len(after) == 1, text
        assert tokenizer(text)["input_ids"] == [*before, *after]


@pytest.mark.parametrize(
    ("generator", "given", "message"),
    [
        (Recall, 1, "pairs is 1; expected an integer from 2 to 10. Pass another pairs."),
        (Compare, 2.0, "count is 2.0; expected an integer from 2 to 10"),
        (Twice, 27, "length is 27; expected an integer from 3 to 20"),
    ],
)
def test_settings_are_checked(generator, given, message):
    with pytest.raises(InputError) as caught:
        generator(given)
    assert message in str(caught.value)


def test_questions_that_run_out_are_reported():
    with pytest.raises(InputError, match=r"expected at most \d+, .* different test questions .* compare and count=2 "):
        Compare(2).draw("test", 1000, 0)
