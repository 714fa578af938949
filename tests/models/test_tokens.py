"""Texts to token ids: special tokens once at the start and none behind, padding and tokens that the model has."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from steerscope.analysis.data.encoding import encode
from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.evaluation.likelihood import choice_log_likelihoods, completion_loss
from steerscope.experiments.finetune import mean_loss, short_finetune
from steerscope.experiments.tasks.supervised import completion_tokens, supervise
from steerscope.experiments.tasks.task import TaskExample
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.models import wrap_model
from steerscope.models.tokens import pad_token, text_tokens
from tests.byte_models import byte_model, byte_tokenizer
from tests.splits import splits_of_examples
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer

SPECIALS = {"<bos>": 0, "<eos>": 1, "<pad>": 2, "[": 4, "]": 5}


def adding(template: str):
    """Return the word-level tokenizer that puts tokens around every text, ``$A`` in the template."""
    tokenizer = tiny_tokenizer()
    used = [(word, SPECIALS[word]) for word in dict.fromkeys(template.split()) if word != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=used)
    return tokenizer


CASES = [
    # what the tokenizer adds, a text, the tokens of the text
    ("$A", "<bos> 7", "<bos> 7"),
    ("<bos> $A", "7 8", "<bos> 7 8"),
    ("<bos> $A", "<bos> 7 8", "<bos> 7 8"),
    ("<bos> $A", "<bos>", "<bos>"),
    ("<bos> $A", "<bos> <bos> 7", "<bos> <bos> 7"),  # the text spells two
    ("<bos> $A <eos>", "7", "<bos> 7"),
    ("<bos> $A <eos>", "<bos> 7 <eos>", "<bos> 7 <eos>"),  # the text spells its end
    ("$A <eos>", "7 <eos> <eos>", "7 <eos> <eos>"),
    ("$A <eos>", "<eos>", "<eos>"),
    ("<eos> $A <eos>", "<eos> 7", "<eos> 7"),  # one token for both ends
    ("<eos> $A <eos>", "<eos>", "<eos>"),
    ("[ $A ]", "7 8", "[ 7 8"),  # an end token that is not the tokenizer's eos_token
    ("[ $A ]", "[ 7 8 ]", "[ 7 8 ]"),
    ("<bos> [ $A ] <eos>", "7", "<bos> [ 7"),
    ("<bos> [ $A ] <eos>", "<bos> [ 7", "<bos> [ 7"),
    ("<bos> [ $A ] <eos>", "<bos> 7", "<bos> 7"),
    ("<bos> [ $A ] <eos>", "[ 7", "<bos> [ 7"),
    ("<bos> $A <eos>", " ", "<bos>"),
    ("$A <eos>", " ", ""),
]


@pytest.mark.parametrize(("template", "text", "expected"), CASES)
def test_special_tokens_stand_once_at_the_start_and_only_spelled_ones_behind(template, text, expected):
    tokenizer = adding(template)
    assert " ".join(tokenizer.convert_ids_to_tokens(text_tokens(text, tokenizer))) == expected


def test_a_flag_that_adds_the_start():
    chat = "{{ bos_token }}{% for m in messages %} {{ m['content'] }} {% endfor %}="
    tokenizer = adding("<bos> $A <eos>")
    tokenizer.chat_template = chat
    text = tokenizer.apply_chat_template([{"role": "user", "content": "MAX 7"}], tokenize=False)
    assert text.startswith("<bos>")
    assert tokenizer.convert_ids_to_tokens(text_tokens(text, tokenizer)) == ["<bos>", "MAX", "7", "="]


@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <eos>", "<bos> $A ]"])
def test_rankings_and_training_read_a_chat_prompt_alike(template):
    tokenizer = adding(template)
    sequence = encode([Example("<bos> MAX 7 =", " 7")], tokenizer, 64).sequences[0]
    plain = encode([Example("MAX 7 =", " 7")], tiny_tokenizer(), 64).sequences[0]
    assert sequence.ids == (0, *plain.ids)
    before, after = completion_tokens("<bos> MAX 7 =", " 7", tokenizer)
    assert ((*before, *after), len(before)) == (sequence.ids, sequence.first_target)
    (learned,) = supervise([TaskExample("<bos> MAX 7 =", " 7", answer="7")], tokenizer, None).sequences
    assert learned.ids == (*sequence.ids, 1)


def byte_adding(template: str):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(word, id) for id, word in enumerate(("<bos>", "<eos>", "<pad>"))]
    )
    return tokenizer


def test_evaluation_reads_a_chat_prompt_with_one_start():
    model = byte_model()
    chat = [TaskExample("<bos>ask\n", "Yes", answer="Yes", choices=("Yes", "No"), answer_index=0)]
    plain = byte_tokenizer()
    for template in ("<bos> $A", "<bos> $A <eos>", "<bos> $A <pad>"):
        tokenizer = byte_adding(template)
        assert generate(model, tokenizer, [chat[0].prompt], max_new_tokens=6) == generate(
            model, plain, [chat[0].prompt], max_new_tokens=6
        )
        assert choice_log_likelihoods(model, tokenizer, chat) == choice_log_likelihoods(model, plain, chat)
        assert completion_loss(model, tokenizer, chat) == completion_loss(model, plain, chat)


def test_an_end_that_the_completion_spells_is_learned_once():
    (sequence,) = supervise([TaskExample("ask\n", "7<eos>", answer="7")], byte_tokenizer(), None).sequences
    assert sequence.ids[-2:] == (byte_tokenizer()("7")["input_ids"][0], 1)


# --- padding, and tokens that the model does not have ---


def with_added(tokenizer, **specials):
    tokenizer.add_special_tokens(specials)
    return tokenizer


def test_a_padding_token_beyond_the_embedding_is_not_used():
    model = tiny_model("llama")
    tokenizer = with_added(tiny_tokenizer(), pad_token="[PAD]")
    assert tokenizer.pad_token_id == VOCAB
    assert pad_token(tokenizer, model) == tokenizer.eos_token_id
    assert pad_token(tiny_tokenizer(), model) == 2
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    assert tokenizer.eos_token_id > VOCAB
    assert pad_token(tokenizer, model) == 0


CHOICES = (" 1", " 2", " 3")


def ranked(n: int = 24, prompt: str = "[ MAX {} ] ="):
    texts = [prompt.format(" ".join(str(k) for k in range(i % 5 + 1)) + f" {i}") for i in range(n)]
    return [Example(text, CHOICES[i % 3], CHOICES, i % 3) for i, text in enumerate(texts)]


def test_prompts_of_two_lengths_under_a_padding_token_beyond_the_embedding():
    loaded = wrap_model(tiny_model("llama"), with_added(tiny_tokenizer(), pad_token="[PAD]"))
    plain = wrap_model(tiny_model("llama"), tiny_tokenizer())
    assert mean_loss(loaded, ranked()) == mean_loss(plain, ranked())
    assert short_finetune(loaded, ranked(), steps=1).keys() == short_finetune(plain, ranked(), steps=1).keys()
    tokenizer, model = with_added(byte_tokenizer(), pad_token="[PAD]"), byte_model()
    prompts = ["ab", "a longer one"]
    plainly = generate(model, byte_tokenizer(), prompts, max_new_tokens=4)
    assert generate(model, tokenizer, prompts, max_new_tokens=4) == plainly
    asked = [TaskExample(p, "Yes", answer="Yes", choices=("Yes", "Never"), answer_index=0) for p in prompts]
    assert choice_log_likelihoods(model, tokenizer, asked) == choice_log_likelihoods(model, byte_tokenizer(), asked)
    assert completion_loss(model, tokenizer, asked) == completion_loss(model, byte_tokenizer(), asked)


SENTENCE = r"makes token 64 \('<tool>'\).*knows tokens 0 to 63, the 64 rows.*resize_token_embeddings"


@pytest.mark.parametrize("door", ["mean_loss", "finetune", "validate", "generate", "likelihood", "loss"])
def test_a_token_beyond_the_embedding_is_refused_at_every_door(door, tmp_path):
    tokenizer = with_added(tiny_tokenizer(), additional_special_tokens=["<tool>"])
    loaded = wrap_model(tiny_model("llama"), tokenizer)
    examples = ranked(prompt="<tool> [ MAX {} ] =")
    answers = [TaskExample(e.prompt, e.completion, e.choices, e.answer_index, answer="1") for e in examples]
    options = ValidateOptions(sites=6, num_ranking=24, num_selection=16, num_test=16, batch_size=1, steps=24)
    doors = {
        "mean_loss": lambda: mean_loss(loaded, examples),
        "finetune": lambda: short_finetune(loaded, examples, steps=1),
        "validate": lambda: validate_ranking(
            loaded, splits_of_examples("tools", ranked(400, "<tool> [ MAX {} ] =")), options, tmp_path
        ),
        "generate": lambda: generate(loaded.model, tokenizer, [e.prompt for e in examples], max_new_tokens=2),
        "likelihood": lambda: choice_log_likelihoods(loaded.model, tokenizer, answers),
        "loss": lambda: completion_loss(loaded.model, tokenizer, answers),
    }
    with pytest.raises(InputError, match=SENTENCE):
        doors[door]()
    assert not list(tmp_path.iterdir())
