"""Byte-level tokenizers made on the spot: every text can be encoded, control tokens are ids of their own."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(*, begins_with_bos: bool = False) -> PreTrainedTokenizerFast:
    """id = byte, then <|im_start|>, <|im_end|>, <bos>, and <think>, which is added but no control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<bos>"])
    if begins_with_bos:
        core.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 258)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", bos_token="<bos>")
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHAT
    return tokenizer


def byte_pairs(
    pairs: list[str], ends: list[str], *, letters="abĠ", by_word=True, template=None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few letters; ids: letters, pairs, ends."""
    names = [*letters, *pairs]
    core = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [tuple(pair) for pair in pairs]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_word)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=ends[0])
    fast.chat_template = template
    return fast


def few_letters() -> PreTrainedTokenizerFast:
    """Letters and two pairs of them; and half a character, which no text has, so that some answers are no text."""
    turns = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '\n' }}{% endfor %}"
    return byte_pairs(["at", "in"], ["<end>"], letters="abcdefghijklmnopqrstuvwxyzĠĊð", template=turns)


def slow() -> ByT5Tokenizer:
    """One without a serialised core, which adds eos at the end of a text."""
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHAT.replace("<|im_start|>", "<pad>").replace("<|im_end|>", "</s>")
    return tokenizer
