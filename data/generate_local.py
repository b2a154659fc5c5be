"""Answers from a Hugging Face decoder on this machine, in batches; with its chat template where it has one.

Legend: B prompts a batch, T tokens of the longest with padding on the left, N tokens generated.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from archs.loading import fetch, load_config, load_tokenizer, most_positions, resolve_name
from core.errors import UserError
from data.generate_prompts import END, Prompt

TAIL = 8  # tokens, in which END is looked for


class LocalModel:
    """A decoder and its tokenizer."""

    def __init__(self, folder: str, name: str, sampling: dict, batch_size: int, device: str | None):
        """sampling: temperature (0: greedy), top_p, max_tokens | device: None takes what there is.

        Raises: UserError when the folder holds no decoder.
        """
        self.folder, self.model_name, self.sampling, self.batch_size = folder, name, sampling, batch_size
        self.notes: list[str] = []
        path = resolve_name(folder)
        self.config = load_config(path, "causal")
        self.tokenizer = load_tokenizer(path)
        self.tokenizer.padding_side = "left"
        self.is_chat = self.tokenizer.chat_template is not None
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = (
            fetch("model", path, AutoModelForCausalLM.from_pretrained, dtype=dtype).to(self.device).eval()
        )

    def ask_all(
        self, prompts: list[Prompt], record: Callable[[list[Prompt], list[dict]], None], bar: tqdm
    ) -> list[str]:
        """Generate, and record each batch. Returns: [], as none fails.

        The random numbers of a batch hang on its first prompt, so answers do on what is in a batch.
        """
        for first in range(0, len(prompts), self.batch_size):
            batch = prompts[first : first + self.batch_size]
            record(batch, self.answers(batch))
            bar.update(len(batch))
        return []

    @torch.no_grad()
    def answers(self, prompts: list[Prompt]) -> list[dict]:
        """The answers of one batch. Raises UserError when it does not fit. Cost: GPU a token, SYNC."""
        if self.is_chat:
            texts = [
                self.tokenizer.apply_chat_template(
                    prompt.messages, tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts
            ]
        else:
            texts = [prompt.messages[-1]["content"] for prompt in prompts]
        coded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not self.is_chat)
        ids, mask = coded["input_ids"].to(self.device), coded["attention_mask"].to(self.device)  # (B, T)
        new, most = self.sampling["max_tokens"], most_positions(self.config)
        if ids.shape[1] + new > most:
            raise UserError(
                f"--local {self.folder}: takes {most} tokens; a prompt has {ids.shape[1]} and asks for {new}: "
                "give fewer --shots or --max_new_tokens"
            )
        greedy = self.sampling["temperature"] == 0
        how = (
            {} if greedy else {name: self.sampling[name] for name in ("temperature", "top_p")} | {"top_k": 0}
        )
        start = ids.shape[1]

        def ended(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
            """(B,) bool: whose plain text is at its end. stop_strings would do, but not for every tokenizer (5.23)."""
            tails = self.tokenizer.batch_decode(ids[:, start:][:, -TAIL:])  # D2H SYNC
            return torch.tensor([END in tail for tail in tails], device=ids.device)

        stop = {} if self.is_chat else {"stopping_criteria": StoppingCriteriaList([ended])}
        torch.manual_seed(prompts[0].seed)
        try:
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=not greedy, max_new_tokens=new,
                pad_token_id=self.tokenizer.pad_token_id, **how, **stop,
            )[:, start:]  # (B, N)  # fmt: skip
        except torch.OutOfMemoryError:
            raise UserError(
                f"--local {self.folder}: memory ended on {len(prompts)} prompts of {ids.shape[1]} tokens at once: give "
                "a lower --concurrency"
            ) from None
        ends = self.model.generation_config.eos_token_id
        ends = {
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
            *(ends if isinstance(ends, list) else [ends]),
        }
        found = []
        for row, prompt_mask in zip(out.tolist(), mask.tolist(), strict=True):  # D2H SYNC
            length = next((k for k, token in enumerate(row) if token in ends), len(row))
            text = self.tokenizer.decode(row[:length], skip_special_tokens=True)
            is_whole = length < len(row) or length < new or (not self.is_chat and END in text)
            found.append(
                {"model": self.model_name, "answer": text, "finish_reason": "stop" if is_whole else "length"}
            )
            found[-1] |= {"prompt_tokens": sum(prompt_mask), "completion_tokens": min(length + 1, len(row))}
        return found
