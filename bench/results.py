"""The last line of every benchmark: one JSON object that says what was measured, and where."""

import argparse
import json

import torch

from core.runs import git_commit, hardware, versions


def print_result(args: argparse.Namespace, **found) -> dict:
    """Print and return what was found, behind commit, versions, hardware and arguments."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {"commit": git_commit(), "versions": versions(), "hardware": hardware(device, 1)}
    result |= {"arguments": vars(args)} | found
    print(json.dumps(result))
    return result
