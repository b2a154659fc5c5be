"""The gradient of a logical batch is one thing: it hangs on neither the cuts, nor packing, nor the number of ranks."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

import core.dist
import train
from archs.dropout import MASKS, Masks
from core.plan import Plan
from losses.classification import loss_denominator
from tests.conftest import FILLER, save_tiny, toy_rows, write_jsonl
from tests.helpers import first_gradient_of

BOUND = {"float32": 2e-6, "float64": 1e-12}  # of ||g1 - g2|| / ||g1|| over all parameters together
CAUGHT = 1e-3  # what a mutation must at least change
LOSSES = {  # name: (kind of rows, flags)
    "ce": ("one", []),
    "balanced": ("one", ["--class_weights", "balanced"]),
    "effective": ("one", ["--class_weights", "effective"]),
    "smoothing": ("one", ["--label_smoothing", "0.1", "--class_weights", "balanced"]),
    "focal": ("one", ["--loss", "focal", "--focal_gamma", "1.5", "--class_weights", "balanced"]),
    "focal-alpha": ("two", ["--loss", "focal", "--focal_alpha", "0.25"]),
    "bce": ("list", []),
    "bce-weights": ("list", ["--class_weights", "balanced", "--label_smoothing", "0.05"]),
    "bce-focal": ("list", ["--loss", "focal", "--class_weights", "effective", "--focal_alpha", "0.3"]),
}
LORA = ["--lora_rank", "4", "--lora_dropout", "0.2"]
OTHERS = {  # name: (flags, types)
    "attention": (["--head", "mlp", "--pooling", "attention"], ["float32"]),  # its softmax is float32 always
    "residual": (["--head", "residual", "--pooling", "mean_max"], list(BOUND)),
    "mean": (["--head", "linear", "--pooling", "mean"], list(BOUND)),
    "recomputed": (["--gradient_checkpointing"], list(BOUND)),
    "lora": (LORA, list(BOUND)),
    "lora, recomputed": ([*LORA, "--gradient_checkpointing"], ["float32"]),
    "rdrop": (["--rdrop", "2"], list(BOUND)),
    "rdrop, recomputed": (["--rdrop", "2", "--gradient_checkpointing"], ["float32"]),
    "fgm": (["--fgm", "0.5"], list(BOUND)),
    "neftune": (["--neftune", "5"], list(BOUND)),
    "all, lora": ([*LORA, "--rdrop", "1", "--fgm", "0.5", "--neftune", "5"], ["float32"]),
}
NO_DROPOUT = ["--dropout", "0"]  # without it the model's own: 0.1, of attention too
WHOLE = ["--max_tokens", "4096", "--packing", "on"]  # one cut; padded ones are cut where padding is least
GRID = [
    ["--max_tokens", budget, "--packing", packing] for budget in ("33", "150") for packing in ("on", "off")
]
GRID.append(["--max_tokens", "4096", "--packing", "off"])


def first_gradient(flags: list[str], number: str = "float32", harm=None) -> torch.Tensor:
    """Of train.py. harm: see mutations."""
    with pytest.MonkeyPatch.context() as patch:
        if number == "float64":
            build, weigh = train.build_model, train.class_weights

            def in_float64(*args, **kwargs):
                model, notes = build(*args, **kwargs)
                return model.double(), notes

            def weights_in_float64(*args):
                weights = weigh(*args)
                return None if weights is None else weights.astype(np.float64)

            add = train.add_lora
            patch.setattr(train, "add_lora", lambda m, *args, **kw: (add(m, *args, **kw), m.double()))
            patch.setattr(train, "build_model", in_float64)
            patch.setattr(train, "class_weights", weights_in_float64)
        if harm:
            harm(patch)
        return first_gradient_of(train.main, flags)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def skewed(rows: list[dict]) -> list[dict]:
    """Rows of unlike length, from 4 to 33 tokens, and few of one class, so that class weights differ."""
    reds = [row for row in rows if row.get("label") == "red"]
    kept = [row for row in rows if row not in reds[4:]]
    return [
        {**row, "text": f"{row['text']} {' '.join(FILLER[: 7 * (k % 3) + k % 5])}"}
        for k, row in enumerate(kept)
    ]


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with the kind of rows: flags of a run."""
    folder = tmp_path_factory.mktemp("one")
    one = skewed(toy_rows(96))
    several = skewed(toy_rows(96, 1, "list"))
    kinds = {"one": one, "two": [row for row in one if row["label"] != "green"], "list": several}
    files = {kind: write_jsonl(folder / f"{kind}.jsonl", rows) for kind, rows in kinds.items()}
    start = ["--model_name", save_tiny(folder / "bert"), "--cache_dir", str(folder / "cache")]
    start += ["--batch_size", "24", "--amp", "off", "--max_length", "33"]
    return lambda kind: [*start, "--train_data", files[kind], "--val_data", files[kind]]


# -- cuts and packing -------------------------------------------------------------------------------------------


def check_grid(flags: list[str], number: str) -> None:
    whole = first_gradient([*flags, *WHOLE], number)
    for how in GRID:
        assert distance(whole, first_gradient([*flags, *how], number)) <= BOUND[number], how


@pytest.mark.parametrize("number", BOUND)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_does_not_depend_on_cuts_and_packing(flags_of, loss, number):
    kind, flags = LOSSES[loss]
    check_grid([*flags_of(kind), *flags], number)


@pytest.mark.parametrize("number", BOUND)
@pytest.mark.parametrize("loss", ["balanced", "bce-focal"])
def test_nor_does_it_without_dropout(flags_of, loss, number):
    kind, flags = LOSSES[loss]
    check_grid([*flags_of(kind), *flags, *NO_DROPOUT], number)


@pytest.mark.parametrize("other, number", [(name, n) for name, (_, types) in OTHERS.items() for n in types])
def test_nor_does_that_of_other_heads_and_of_recomputed_layers(flags_of, other, number):
    check_grid([*flags_of("one"), *OTHERS[other][0]], number)


def test_recomputed_layers_have_the_gradient_of_kept_ones(flags_of):
    flags = [*flags_of("one"), *WHOLE]
    kept, again = first_gradient(flags), first_gradient([*flags, "--gradient_checkpointing"])
    assert distance(kept, again) <= BOUND["float32"]


def test_dropout_and_class_weights_do_something(flags_of):
    """Else the grid above would compare less than it says."""
    plain = [*flags_of("one"), *WHOLE, *NO_DROPOUT]
    none = first_gradient(plain)
    assert distance(none, first_gradient([*flags_of("one"), *WHOLE])) > 1e-2
    for loss in ("balanced", "effective", "smoothing", "focal"):
        assert distance(none, first_gradient([*plain, *LOSSES[loss][1]])) > 1e-2, loss


# -- mutations: what the comparison is there to catch -----------------------------------------------------------


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Each cut's loss is divided by its own rows (or their weights), and the cuts' means are averaged."""
    make, cuts, denominator = train.make_loss, Plan.cuts, train.loss_denominator
    now = {"cuts": 1, "denom": 1.0}

    def counted(*args):
        found = cuts(*args)
        now["cuts"] = len(found)
        return found

    def noted(*args):
        now["denom"] = denominator(*args)
        return now["denom"]

    def made(name, multi_label, weights, *rest):
        loss_fn, by_class = make(name, multi_label, weights, *rest), weights

        def call(logits, labels):
            own = loss_denominator(labels.numpy(), None if by_class is None else by_class.numpy())
            return loss_fn(logits, labels) / own * now["denom"] / now["cuts"]

        return call

    patch.setattr(Plan, "cuts", counted)
    patch.setattr(train, "loss_denominator", noted)
    patch.setattr(train, "make_loss", made)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_denominator_for_each_micro_batch_is_caught(flags_of, loss):
    kind, flags = LOSSES[loss]
    flags = [*flags_of(kind), *flags, *NO_DROPOUT]
    whole = first_gradient([*flags, *WHOLE])
    assert distance(whole, first_gradient([*flags, *WHOLE], harm=mean_of_means)) <= BOUND["float32"]
    for how in GRID[:2]:  # 150 tokens make a few cuts of as many rows each, by chance
        assert distance(whole, first_gradient([*flags, *how], harm=mean_of_means)) > CAUGHT, how


def masks_of_a_generator(patch: pytest.MonkeyPatch) -> None:
    """What torch's dropout does: draw one mask after another, so that they hang on the cuts."""
    patch.setattr(Masks, "keys", lambda self, shape: None)


def masks_by_place_in_the_cut(patch: pytest.MonkeyPatch) -> None:
    """Rows numbered inside their cut, not in their file."""
    begin = Masks.begin_cut
    patch.setattr(Masks, "begin_cut", lambda self, rows, *args: begin(self, torch.arange(len(rows)), *args))


def masks_by_cut(patch: pytest.MonkeyPatch) -> None:
    """The layers' numbers run on from cut to cut."""
    begin = Masks.begin_cut

    def begun(self, *args):
        layer = self.layer
        begin(self, *args)
        self.layer = layer

    patch.setattr(Masks, "begin_cut", begun)


@pytest.mark.parametrize("harm", [masks_of_a_generator, masks_by_place_in_the_cut, masks_by_cut])
def test_masks_that_hang_on_the_cuts_are_caught(flags_of, harm):
    flags = flags_of("one")
    whole = first_gradient([*flags, *WHOLE], harm=harm)
    for how in GRID[:4]:
        assert distance(whole, first_gradient([*flags, *how], harm=harm)) > CAUGHT, how


# -- ranks ------------------------------------------------------------------------------------------------------


def worker(rank: int, world: int, port: int, folder: str, function, args: tuple) -> None:
    """One of several processes; what the function returns goes to a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    found = function(rank, *args)
    train.close_dist()
    torch.save(found, Path(folder) / f"{rank}.pt")


def on_ranks(world: int, folder: Path, function, *args) -> list:
    """What function(rank, *args) returns on each of world processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(world, port, str(folder), function, args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def gradients_of(rank: int, jobs: dict[str, tuple[list[str], str]]) -> dict[str, torch.Tensor]:
    """Of all jobs, on this rank; sent in small buckets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.dist, "BUCKET_MIB", 1e-3)
        return {name: first_gradient(*job) for name, job in jobs.items()}


def jobs_of(flags_of) -> dict[str, tuple[list[str], str]]:
    """Every loss with the model's dropout, packed in one type, padded in the other; and a rank that has no row."""
    jobs = {}
    for k, (loss, (kind, flags)) in enumerate(LOSSES.items()):
        for number, how in zip(BOUND, GRID[:2][:: -1 if k % 2 else 1]):
            jobs[f"{loss}, {how[-1]}, {number}"] = [*flags_of(kind), *flags, *how], number
    jobs["no dropout"] = [*flags_of("one"), *NO_DROPOUT, *GRID[2]], "float32"
    jobs["lora"] = [*flags_of("one"), *LORA, *GRID[0]], "float32"
    jobs["no row"] = [*flags_of("one"), "--batch_size", "1", *GRID[2]], "float64"
    jobs["overlap"] = [*flags_of("one"), *GRID[1], "--overlap"], "float64"
    return jobs


def check_ranks(world: int, jobs: dict, folder: Path) -> None:
    """The gradients of world processes are those of one, and the same on each of them."""
    first, *others = on_ranks(world, folder, gradients_of, jobs)
    for name, (flags, number) in jobs.items():
        assert distance(first_gradient([*flags, *WHOLE], number), first[name]) <= BOUND[number], name
        assert all(torch.equal(first[name], other[name]) for other in others), name


@pytest.mark.dist
def test_the_gradient_of_two_ranks_is_that_of_one(flags_of, tmp_path):
    check_ranks(2, jobs_of(flags_of), tmp_path)


@pytest.mark.dist
@pytest.mark.slow
def test_the_gradient_of_four_ranks_is_that_of_one(flags_of, tmp_path):
    check_ranks(4, jobs_of(flags_of), tmp_path)


@pytest.mark.dist
@pytest.mark.slow
def test_overlap_with_a_rank_that_has_no_row(flags_of, tmp_path):
    flags = [*flags_of("one"), "--batch_size", "1", *GRID[2], "--overlap"]
    check_ranks(2, {"no row": (flags, "float64")}, tmp_path)


def test_masks_are_the_process_s_own(flags_of):
    """The loop names the step for MASKS; a run that was cut short leaves nothing that changes the next."""
    flags = [*flags_of("one"), *GRID[0]]
    first = first_gradient(flags)
    MASKS.begin_step(99)
    MASKS.layer = 7
    assert torch.equal(first, first_gradient(flags))
