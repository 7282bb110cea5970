"""The tokenizer: the same list gives the same tokens, demo words stay whole, nothing that a user types breaks it."""

import pytest
import torch

from finephys.diffusion.text import (
    DEMO_SENTENCES,
    TextConfig,
    build_text_encoder,
    build_tokenizer,
    encode_prompts,
    tokenize,
)


def test_same_prompts_same_tokenizer_whatever_their_order():
    first = build_tokenizer(TextConfig(), DEMO_SENTENCES)
    second = build_tokenizer(TextConfig(), [*DEMO_SENTENCES[::-1], DEMO_SENTENCES[0]])
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_known_words_are_one_token_and_unknown_ones_are_spelled():
    tokenizer = build_tokenizer(TextConfig(), DEMO_SENTENCES)
    assert tokenizer.tokenize("Gymnast red LEOTARD") == ["gymnast</w>", "red</w>", "leotard</w>"]
    assert "".join(tokenizer.tokenize("zyx")) == "zyx</w>"


@pytest.mark.parametrize("prompt", ["", "  ", "café 漢字 😀", "\x00\x07\n", "a" * 5000, "<|endoftext|> 100%"])
def test_any_text_becomes_tokens_that_the_encoder_takes(prompt):
    config = TextConfig(max_length=16)
    tokenizer = build_tokenizer(config, DEMO_SENTENCES)
    tokens = tokenize(tokenizer, [prompt, "A gymnast"])
    assert tokens.shape == (2, 16)
    with torch.no_grad():
        text = encode_prompts(build_text_encoder(config, tokenizer), tokens)
    assert text.shape == (2, 16, config.hidden_size)
    assert torch.isfinite(text).all()


def test_vocabulary_survives_letters_outside_the_alphabet():
    tokenizer = build_tokenizer(TextConfig(), ["Ein Überschlag rückwärts", "pirouette"])
    assert tokenizer.tokenize("pirouette") == ["pirouette</w>"]


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = build_tokenizer(TextConfig(), DEMO_SENTENCES)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert torch.equal(tokenize(tokenizer, DEMO_SENTENCES), tokenize(loaded, DEMO_SENTENCES))


def test_no_prompts_is_an_error():
    with pytest.raises(ValueError, match="prompts hold no text"):
        build_tokenizer(TextConfig(), ["", " "])
