"""Dropout whose masks hang on (seed, step, row, layer, element) alone, however the rows are cut, packed or dealt.

A mask bit is a hash of those numbers instead of a draw from a generator. On CPU that is also several times as fast:
torch draws one Bernoulli trial after another, here two 16-bit uniforms come out of one 32-bit hash in a few
vectorised passes (bench/NOTES.md). The keep probability is exact to 2^-16, the scale that of the probability used.

B rows, T or N tokens, D width, H heads. Sources: the finaliser is Wellons' lowbias32 (hash-prospector).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig

from core.errors import UserError

MULTIPLY_1, MULTIPLY_2 = 0x21F0AAAD, 0xD35A2D97 - 2**32  # lowbias32's, as int32
ROW, PLACE, HEAD, LAYER = (
    0x3C6EF35F,
    0x1B873593,
    0x2C1B3C6D,
    0x297A2D39,
)  # odd: each number spreads over 32 bits
SECOND = 0x5851F42D  # sets the masks of a second pass apart


def hash_(z: torch.Tensor) -> torch.Tensor:
    """int32 to well mixed int32, in place. The & makes torch's arithmetic shift a logical one."""
    z.bitwise_xor_((z >> 16).bitwise_and_(0xFFFF)).mul_(MULTIPLY_1)
    z.bitwise_xor_((z >> 15).bitwise_and_(0x1FFFF)).mul_(MULTIPLY_2)
    return z.bitwise_xor_((z >> 15).bitwise_and_(0x1FFFF))


class Masks:
    """What the masks of the forward pass under way hang on. One for the process: a model's modules get no more than
    their input. The loop names the step, the model each cut's rows."""

    def __init__(self):
        self.seed, self.everywhere = 0, False
        self.rows: torch.Tensor | None = None  # (B,) int32, a hash of (seed, step, row)
        self.tokens: torch.Tensor | None = None  # (B, T) or (1, N) int32, of (seed, step, row, place)
        self.layer = 0  # dropouts done in this forward pass
        self.columns: dict[torch.device, torch.Tensor] = {}

    def begin_step(self, seed: int, everywhere: bool = False) -> None:
        """seed: of this optimiser step, the same on all ranks | everywhere: on CUDA too (--exact_dropout)."""
        self.seed, self.everywhere = seed & 0x7FFFFFFF, everywhere
        self.rows = self.tokens = None

    def are_used(self, device: torch.device, in_blocks: bool) -> bool:
        """Whether a pass on this device asks for masks of this module; block attention always does."""
        return device.type == "cpu" or self.everywhere or in_blocks

    def begin_cut(self, rows: torch.Tensor, owner: torch.Tensor | None, place: torch.Tensor) -> None:
        """Name the rows of a cut.

        Args: rows: (B,) int64, each row's number in its file | owner: (N,) int64, which of the rows each packed token
              is of; None where rows are padded | place: (N,) or (T,) int64, each token's place in its row.
        """
        self.rows = hash_((rows * ROW + self.seed).int())
        spread = (place * PLACE).int()
        if owner is None:
            self.tokens = hash_(self.rows[:, None] + spread)
        else:
            self.tokens = hash_(self.rows[owner] + spread)[None]
        self.layer = 0

    def begin_rows(self, rows: torch.Tensor) -> None:
        """Name the vectors of the same forward pass that follow, one a row: (M,) int64 numbers."""
        self.rows = hash_((rows * ROW + self.seed).int())
        self.tokens = self.rows[:, None]

    def next_layer(self) -> int:
        """A number for the dropout that comes now, the same in every cut."""
        self.layer += 1
        return self.layer * LAYER & 0x7FFFFFFF

    def keys(self, shape: torch.Size) -> torch.Tensor | None:
        """(shape[:-1]) int32 keys of an input's vectors, None where it is not one vector a row, token or head."""
        if self.rows is None:
            return None
        if shape[:-1] == self.tokens.shape:
            return self.tokens
        if shape[0] != len(self.rows):
            return None
        if len(shape) == 2 or (len(shape) == 3 and shape[1] == 1):
            return self.rows.view(shape[:-1])
        if len(shape) == 3:  # a decoder's places beside an encoder's
            place = torch.arange(shape[1], device=self.rows.device) * PLACE
            return hash_(self.rows[:, None] + place.int())
        return self.heads(shape[1], shape[2]) if len(shape) == 4 else None

    def heads(self, num_heads: int, num_queries: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """(B, H, T) int32 keys of the attention of each query; of these rows of the cut, or of all."""
        if self.rows is None:
            raise ValueError("dropout before MASKS.begin_cut has named the rows: call the model with a Cut")
        keys = self.rows if rows is None else self.rows[rows]
        head = (torch.arange(1, num_heads + 1, device=keys.device) * HEAD).int()
        query = (torch.arange(num_queries, device=keys.device) * PLACE).int()
        return hash_(keys[:, None, None] + head[:, None] + query)

    @contextmanager
    def second_pass(self) -> Iterator[None]:
        """Passes in the block draw other masks for the same rows and step."""
        self.seed ^= SECOND
        try:
            yield
        finally:
            self.seed ^= SECOND

    def keep(self, keys: torch.Tensor, width: int, p: float, layer: int) -> torch.Tensor:
        """(*keys.shape, width) int16 0/1: 0 with probability p, rounded to 2^-16."""
        return self._bits(keys, width, layer).ge_(sixteenth_bits(p) - 32768)

    def uniform(self, keys: torch.Tensor, width: int, layer: int) -> torch.Tensor:
        """(*keys.shape, width) float32 in (-1, 1), of 2^16 values symmetric about 0."""
        return (self._bits(keys, width, layer).float() + 0.5) / 32768

    def _bits(self, keys: torch.Tensor, width: int, layer: int) -> torch.Tensor:
        """(*keys.shape, width) int16, evenly spread over all values."""
        pairs = (width + 1) // 2
        columns = self.columns.get(keys.device)
        if columns is None or len(columns) < pairs:
            columns = hash_(torch.arange(1, max(pairs, 4096) + 1, dtype=torch.int32, device=keys.device))
            self.columns[keys.device] = columns
        z = hash_(keys + layer)[..., None] + columns[:pairs]
        z.bitwise_xor_(z >> 16).mul_(MULTIPLY_1)  # hash_, but for the & that only the last shift needs
        z.bitwise_xor_(z >> 15).mul_(MULTIPLY_2)
        z.bitwise_xor_((z >> 15).bitwise_and_(0x1FFFF))
        bits = z.view(torch.int16)
        return bits if bits.shape[-1] == width else bits[..., :width]


MASKS = Masks()


def sixteenth_bits(p: float) -> int:
    """p in units of 2^-16, below 1."""
    return min(65535, round(p * 65536))


def kept_scale(p: float) -> float:
    """1 / the keep probability really used."""
    return 65536 / (65536 - sixteenth_bits(p))


def masked(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """x where keep is 1, else 0. 16-bit floats are multiplied as integers: by 0 or 1 that is exact, and a
    sixteenth of the time of a product of two types."""
    if x.element_size() == 2:
        return x.contiguous().view(torch.int16).mul(keep).view(x.dtype)
    return x * keep.to(x.dtype)


class _Dropout(torch.autograd.Function):
    """x times a 0/1 mask, times a number."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return masked(x, keep).mul_(scale)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return masked(grad, keep).mul_(ctx.scale), None, None


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """As torch.nn.functional.dropout; on CPU, and with --exact_dropout on CUDA, by the masks of this module.

    Args: x: (B, D), (B, T, D), (1, N, D) or (B, H, T, S); any other shape is dropped by torch's generator, which the
          loop seeds each step | p: chance that an element becomes 0, in [0, 1].
    """
    if not training or p == 0:
        return x
    keys = MASKS.keys(x.shape) if p < 1 and (x.device.type == "cpu" or MASKS.everywhere) else None
    if keys is None:
        return nn.functional.dropout(x, p, training)
    return _Dropout.apply(x, MASKS.keep(keys, x.shape[-1], p, MASKS.next_layer()), kept_scale(p))


class Dropout(nn.Dropout):
    """nn.Dropout by the function above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p, self.training)


def replace_dropout(model: nn.Module) -> None:
    """Make every nn.Dropout of the model ours, in place; probabilities and names stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Set every dropout of a configuration, in place; those that follow another one (None) keep following."""
    for name, value in vars(config).copy().items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and any(part in name for part in ("dropout", "drop_out", "pdrop")):
            setattr(config, name, dropout)


def attention_dropout(config: PreTrainedConfig, value: float | None = None) -> float:
    """The dropout of attention probabilities; a value sets it, in place."""
    names = [
        name
        for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")
        if isinstance(getattr(config, name, None), int | float)
    ]
    if value is not None:
        for name in names:
            setattr(config, name, value)
    return max((getattr(config, name) for name in names), default=0.0)


def set_t5_attention_dropout(model: nn.Module, value: float) -> None:
    """T5 has one setting for every dropout: set that of its attention modules alone, in place."""
    for module in model.modules():
        if hasattr(module, "relative_attention_num_buckets") and isinstance(module.dropout, float):
            module.dropout = value


def check_exact_dropout(
    exact: bool, config: PreTrainedConfig, device: torch.device, draws_own: bool = False
) -> None:
    """Raise UserError where --exact_dropout cannot hold: on CUDA, where flash kernels draw masks of their own, and for
    a model that draws_own (archs/probes.py)."""
    if exact and draws_own:
        raise UserError(
            f"--exact_dropout: {config.model_type} draws masks past the modules that could be replaced: "
            "add --dropout 0, or take another model"
        )
    found = attention_dropout(config)
    if exact and device.type != "cpu" and found > 0:
        raise UserError(
            f"--exact_dropout: the model drops attention probabilities ({found}), and on {device.type} their kernels "
            "draw masks of their own: add --attention_dropout 0"
        )


def same_masks_again() -> tuple:
    """For torch.utils.checkpoint's context_fn: what is computed again in the backward pass counts its layers from
    where it did the first time, and names its tokens as then: a ranker's head has named its candidates since."""
    began = None

    @contextmanager
    def first() -> Iterator[None]:
        nonlocal began
        began = MASKS.layer, MASKS.rows, MASKS.tokens
        yield

    @contextmanager
    def again() -> Iterator[None]:
        now = MASKS.layer, MASKS.rows, MASKS.tokens
        MASKS.layer, MASKS.rows, MASKS.tokens = began
        try:
            yield
        finally:  # torch stops a recomputation as soon as it has what it needs
            MASKS.layer, MASKS.rows, MASKS.tokens = now

    return first(), again()
