"""The prompt's encoder: a CLIP text model and tokenizer small enough to train beside the UNet.

Path:    prompt -> tokens -> text
Letters: B prompts, L tokens, C channels

transformers' CLIPTextModel and CLIPTokenizer, so that Stable Diffusion's own drop in. The demo's tokenizer knows the
vocabulary of the demo's prompts: byte pairs (Sennrich et al., ACL 2016) learned from a list of sentences. We learn them
here and not with `tokenizers`' trainer, which breaks ties at random: the same list must give the same tokenizer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finephys.data.gym99 import GYM99_FLOOR

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

# What words are spelled with where no byte pair fits (CLIP lowers capitals). Anything else, an emoji say, becomes END,
# CLIP's unknown token.
_ALPHABET = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]

# What a fresh tokenizer learns its words from: the demo's looks, its motions, and gym99's floor classes.
_LOOKS = (
    "A gymnast with fair skin and black hair in a red leotard, in a blue hall.",
    "A gymnast with tan skin and brown hair in a blue leotard with a white belt, in a grey hall.",
    "A gymnast with brown skin and blonde hair in a green leotard with black sleeves, in a beige hall.",
    "A gymnast with dark skin and a white cap in a purple leotard with white sleeves, in a green hall.",
    "A gymnast with fair skin and a red cap in a black leotard with a black belt, in a pink hall.",
    "A gymnast with tan skin and a blue cap in a white leotard, in a teal hall.",
)
_MOTIONS = (
    "jumps backward, turns over once in the air and lands on her feet, does a backflip from standing and lands upright",
    "spins around and jumps while turning in the air, turns quickly on the spot with a spinning jump",
    "steps forward and kicks one leg high, does a high kick while standing on one leg, a spinning kick, a cartwheel",
    "steps forward and punches with one arm, throws a straight punch from a wide stance, rolls forward over the floor",
    "dances with steps to the side and swinging arms, does a dance step and turns her body, bends both knees",
    "dances with little hops from foot to foot, hops and sways through a dance on the spot, puts her hands down",
    "runs across the floor with long strides, sprints in a straight line, walks in a straight line at an even pace",
    "walks and turns to one side, walks along a curve across the floor, jumps up straight and lands on both feet",
    "crawls forward on hands and knees, moves along the floor on all fours, turns sideways over her hands",
    "lies face down on the floor, pushes up and gets to her feet, rises from lying on her front, rises from her back",
    "crouches, leaps up into the air, does a jumping spin, a forward roll over her head, stands up again in a squat",
    "lies on her back, rolls over and gets to her feet, lands with legs apart, swings both arms up, tucks her knees",
)
DEMO_SENTENCES = (
    *_LOOKS,
    *_MOTIONS,
    *(sentence for floor in GYM99_FLOOR.values() for sentence in (floor.name, *floor.phrasings)),
)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The demo's text encoder: 0.23 M parameters."""

    # Tokens that the tokenizer learns at most.
    vocab_size: int = 1024
    # Tokens that a prompt is padded or cut to.
    max_length: int = 64
    # Width of the network.
    hidden_size: int = 128
    # Width inside its feed-forward layers.
    intermediate_size: int = 256
    # Layers.
    num_hidden_layers: int = 1
    # Heads of each attention.
    num_attention_heads: int = 4


def build_tokenizer(config: TextConfig, prompts: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs are learned from `prompts`; their order and repetition do not matter.

    Raises ValueError where no prompt holds text.
    """
    sentences = sorted({prompt for prompt in prompts if prompt.strip()})
    if not sentences:
        raise ValueError("prompts hold no text, wanted at least one sentence")
    # CLIP's own normaliser and word splitter.
    clip = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    words: Counter[str] = Counter()
    for sentence in sentences:
        normal = clip.normalizer.normalize_str(sentence)
        split = (word for word, _ in clip.pre_tokenizer.pre_tokenize_str(normal))
        words.update(word for word in split if set(word) <= set(_ALPHABET))

    tokens = [START, END, *_ALPHABET, *(letter + _WORD_END for letter in _ALPHABET)]
    merges = _learn_merges(tuple(sorted(words.items())), config.vocab_size - len(tokens))
    # Two merges can spell the same token.
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=list(merges),
        model_max_length=config.max_length,
    )


def build_text_encoder(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh text encoder for the tokens of `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=config.max_length,
            hidden_size=config.hidden_size,
            projection_dim=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Prompts -> token ids (B, L) int64, padded and cut to the tokenizer's model_max_length."""
    tokens: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


def encode_prompts(text_encoder: CLIPTextModel, tokens_BL: Tensor) -> Tensor:
    """Token ids (B, L) -> what the UNet attends to, (B, L, C)."""
    encoded: Tensor = text_encoder(tokens_BL.to(text_encoder.device)).last_hidden_state
    return encoded


@lru_cache(maxsize=4)
def _learn_merges(counted: tuple[tuple[str, int], ...], num_merges: int) -> tuple[tuple[str, str], ...]:
    """The pairs that byte-pair encoding joins, in order; the commonest first, equals in alphabetical order.

    counted: words, sorted, and how often each comes.
    """
    words = dict(counted)
    spellings = {word: (*word[:-1], word[-1] + _WORD_END) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, spelling in spellings.items():
            for pair in pairwise(spelling):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = {word: _join(spelling, best) for word, spelling in spellings.items()}
    return tuple(merges)


def _join(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`spelling` with each occurrence of `pair` joined, from the left."""
    joined: list[str] = []
    for symbol in spelling:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)
