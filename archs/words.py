"""Label words scored by a language model's head: the score of a class is the log-probability of its whole word.

B rows, S states whose next token is asked for, C classes, m tokens of the longest word, D width, V vocabulary.
"""

import numpy as np
import torch
from torch import nn


def shared_beginnings(parts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The fewest of these tuples that each of them begins. T5 splits "TP" and "FP" into one first token and another,
    so one of them is read for both."""
    found = []
    for part in sorted(set(parts), key=len, reverse=True):
        if part and not any(other[: len(part)] == part for other in found):
            found.append(part)
    return sorted(found, key=parts.index)


class WordTable(nn.Module):
    """The words' tokens, and which of a row's S states predicts which of them.

    States stand side by side (`behind`: the prompt's last, then those behind it), or m of them for each of `branches`
    (`apart`: the prompt's last and those behind it, once for each).
    """

    def __init__(self, answers: list[tuple[int, ...]]):
        super().__init__()
        width = max(map(len, answers))
        read = shared_beginnings([answer[:-1] for answer in answers])
        # where the states of each begin, when they stand side by side
        starts = np.cumsum([1, *map(len, read)]).tolist()  # numpy
        tokens, behind, apart = (np.zeros((len(answers), width), np.int64) for _ in range(3))
        for c, answer in enumerate(answers):
            tokens[c, : len(answer)] = answer
            if len(answer) > 1:
                k = next(k for k, part in enumerate(read) if part[: len(answer) - 1] == answer[:-1])
                behind[c, 1 : len(answer)] = starts[k] + np.arange(len(answer) - 1)
                apart[c, : len(answer)] = k * width + np.arange(len(answer))
        keep = np.arange(width) < np.array([len(answer) for answer in answers])[:, None]
        self.answers, self.width, self.num_states = answers, width, starts[-1]
        self.branches = read  # token ids to be read behind the prompt; empty where every word is one token
        sizes = np.array([1 + len(part) for part in read])
        parts = {"tokens": tokens, "keep": keep, "behind": behind, "apart": apart, "ends": sizes}
        for name, values in parts.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

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
