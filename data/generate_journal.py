"""Every answer that was paid for, on disk as it comes: an append-only file, by which the same command goes on."""

import fcntl
import json
import os
from pathlib import Path

from core.errors import UserError, disk_errors
from data.generate_prompts import Prompt


class Journal:
    """Answers by Prompt.key. One command at a time has it open."""

    def __init__(self, path: Path):
        """Open, or begin, and read what is there. An unfinished last line, of a kill, is cut off.

        Raises: UserError when another command has it open, or a line is no answer.
        """
        self.path, self.answers = path, {}
        with disk_errors(path, "--output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a+b", buffering=0)  # noqa: SIM115
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.file.close()
                raise UserError(
                    f"{path}: another command is at work on it; wait, or give another --output"
                ) from None
            self.file.seek(0)
            content = self.file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                key = row["prompt_id"], row["index"], row["seed"]
                is_answer = isinstance(row["answer"], str)
            except (ValueError, KeyError, TypeError):
                is_answer = False
            if not is_answer:
                self.file.close()
                raise UserError(
                    f"{path}: line {number} is no answer that data.generate wrote; remove the file"
                )
            self.answers[key] = row

    def add(self, prompts: list[Prompt], answers: list[dict]) -> None:
        """Append answers, {"model", "answer", "finish_reason", "prompt_tokens", "completion_tokens"}, and wait for the
        disk."""
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            head = {"prompt_id": prompt.id, "index": prompt.index, "seed": prompt.seed}
            rows.append(head | answer | {"messages": prompt.messages})
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()  # ASCII: holds any text
        size = os.fstat(self.file.fileno()).st_size
        with disk_errors(self.path, "--output"):
            try:
                while content:
                    content = content[self.file.write(content) :]
                os.fsync(self.file.fileno())
            except OSError:
                self.file.truncate(size)  # no half of a line before the next
                raise
        self.answers |= {prompt.key: row for prompt, row in zip(prompts, rows, strict=True)}

    def close(self) -> None:
        """Let another command have it."""
        self.file.close()
