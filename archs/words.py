"""Label words scored by a language model's head: the score of a class is the log-probability of its whole word.

B rows, S states whose next token is asked for, C classes, m tokens of the longest word, D width, V vocabulary.
"""

import torch
from torch import nn


class WordTable(nn.Module):
    """The words' tokens, and which of a row's S states predicts which of them."""

    def __init__(self, answers: list[tuple[int, ...]]):
        super().__init__()
        sizes = [len(answer) for answer in answers]
        width = max(sizes)
        starts = [1 + sum(size - 1 for size in sizes[:k]) for k in range(len(sizes))]
        tokens = [[*answer, *[0] * (width - len(answer))] for answer in answers]
        keep = [[j < size for j in range(width)] for size in sizes]
        behind = [
            [0 if j == 0 or j >= size else first + j - 1 for j in range(width)]
            for first, size in zip(starts, sizes, strict=True)
        ]
        self.answers, self.width = answers, width
        self.num_states = 1 + sum(size - 1 for size in sizes)
        for name, values in (("tokens", tokens), ("keep", keep), ("behind", behind)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        # each word by itself: m states a word, one word after the other
        self.register_buffer("apart", torch.arange(len(sizes) * width).view(-1, width), persistent=False)
        self.register_buffer("ends", torch.tensor(sizes), persistent=False)

    @property
    def branches(self) -> list[tuple[int, ...]]:
        """What must be read behind the prompt: each word but for its last token; empty where all are one token."""
        return [answer[:-1] for answer in self.answers] if self.width > 1 else []

    def scores(
        self, states: torch.Tensor, logits: torch.Tensor, head: nn.Module, places: torch.Tensor, exact: bool
    ) -> torch.Tensor:
        """(B, C) float32 (float64 for float64 states) log-probabilities, in nats.

        Args:    states: (B, S, D), the head's input | logits: (B, S, V), its output | places: (C, m) int64, the state
                 that predicts each token | exact: compute the words' own logits again in float32.
        exact is for bfloat16, where a logit of 20 comes in steps of 1/8: the words' rows of the head are few, and
        what is left of the error, in the sum over the vocabulary, is common to all words of a row's first token.
        """
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.logsumexp(logits.to(wide), dim=-1)  # (B, S)
        if exact and type(head) is nn.Linear:  # an adapter on it is in its logits alone
            with torch.autocast(states.device.type, enabled=False):
                rows = head.weight[self.tokens].to(wide)  # (C, m, D)
                found = torch.einsum("bcmd,cmd->bcm", states[:, places].to(wide), rows)
                if head.bias is not None:
                    found = found + head.bias[self.tokens].to(wide)
        else:
            found = logits[:, places, self.tokens].to(wide)  # (B, C, m)
        return ((found - total[:, places]) * self.keep).sum(dim=-1)


@torch.no_grad()
def has_plain_head(model: nn.Module) -> bool:
    """Whether a model's logits are its head's product and no more: three tokens are put through it.

    A list of what may come behind (a cap, a scale, a bias) would not do: configurations name it in many ways.
    """
    head, products, training = model.get_output_embeddings(), [], model.training
    ids = torch.tensor([[5, 6, 7]], device=model.device) % head.weight.shape[0]
    answer = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    hook = head.register_forward_hook(lambda module, inputs, output: products.append(output))
    model.eval()
    try:
        logits = model(input_ids=ids, **answer, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    return torch.equal(logits.float(), products[0].float())
