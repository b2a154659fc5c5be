"""The gradient of a batch of questions is one thing: it hangs on neither the cuts, nor on how a question is read, nor
on the number of ranks."""

import numpy as np
import pytest
import torch

import core.dist
import rank_train
from losses.ranking import RANKING_LOSSES
from tests.archs.test_ranker import in_own_type
from tests.helpers import first_gradient_of, rank_flags
from tests.test_lora_runs import with_random_b
from tests.test_one_gradient import (
    BOUND,
    CAUGHT,
    distance,
    masks_by_cut,
    masks_by_place_in_the_cut,
    on_ranks,
)

NO_DROPOUT = ["--dropout", "0"]
WHOLE = ["--max_tokens", "4096"]
# a question of three candidates has up to 18 + 3 x 3 tokens, or 3 x 21
SHARED = [["--share_prefix", "on", "--max_tokens", n] for n in ("4096", "130", "40")]
PACKED = [["--share_prefix", "off", "--packing", "on", "--max_tokens", n] for n in ("4096", "130", "70")]
PADDED = [["--packing", "off", "--max_tokens", n] for n in ("4096", "130", "70")]


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind of RANKERS: flags of a run without its folder."""
    folder = tmp_path_factory.mktemp("rank")
    return lambda kind: rank_flags(folder, kind)


def first_gradient(flags: list[str], number: str = "float32", harm=None) -> torch.Tensor:
    """Of rank_train.py. harm: a mutation."""
    with pytest.MonkeyPatch.context() as patch:
        build, add = rank_train.build_model, with_random_b(rank_train.add_lora)

        def built(*args, **kwargs):
            model, notes = build(*args, **kwargs)
            if number == "float64":
                in_own_type(model.double())
            return model, notes

        def added(model, *args, **kwargs):
            add(model, *args, **kwargs)
            if number == "float64":
                model.double()

        patch.setattr(rank_train, "build_model", built)
        patch.setattr(rank_train, "add_lora", added)
        if harm:
            harm(patch)
        return first_gradient_of(rank_train.main, flags)


def check(flags: list[str], ways: list[list[str]], number: str, harm=None) -> None:
    """All ways have the gradient of the first."""
    first, *others = ways
    whole = first_gradient([*flags, *first], number, harm)
    assert whole.isfinite().all()
    assert whole.any()
    for how in others:
        assert distance(whole, first_gradient([*flags, *how], number, harm)) <= BOUND[number], how


# -- cuts, and how a question is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOUND)
@pytest.mark.parametrize("kind", ["causal", "gpt2"])
def test_a_question_read_once_or_with_each_candidate_in_any_cuts(kind, number, flags_of):
    check([*flags_of(kind), *NO_DROPOUT], [*SHARED, *PACKED[:2], *PADDED[1:]], number)


def test_all_weights_of_a_decoder(flags_of):
    check([*flags_of("whole"), *NO_DROPOUT], [SHARED[0], SHARED[2], PADDED[1]], "float64")
    check(
        [*flags_of("whole"), *NO_DROPOUT, "--gradient_checkpointing"],
        [SHARED[0], SHARED[2], PADDED[1]],
        "float64",
    )


@pytest.mark.parametrize("loss", RANKING_LOSSES)
def test_every_loss(loss, flags_of):
    flags = [*NO_DROPOUT, "--loss", loss, "--tau", "0.3"]
    check([*flags_of("causal"), *flags], [SHARED[0], SHARED[2], PADDED[1]], "float64")
    check([*flags_of("bert"), *flags], [PACKED[0], PACKED[2], PADDED[1]], "float64")


@pytest.mark.parametrize("number", BOUND)
@pytest.mark.parametrize("more", [[], ["--head", "residual", "--pooling", "mean_max"], NO_DROPOUT], ids=str)
def test_an_encoder_with_its_dropout(more, number, flags_of):
    """The masks hang on the question, not on the cut."""
    again = [[*how, "--gradient_checkpointing"] for how in (PACKED[0], PADDED[1])]
    check([*flags_of("bert"), *more], [*PACKED, *PADDED[1:], *again], number)


@pytest.mark.parametrize("kind, more", [("gpt2", []), ("causal", ["--lora_dropout", "0.2"])])
def test_dropout_in_a_question_read_once(kind, more, flags_of):
    """The masks hang on the question and the place, for any cuts, and where it is read with each candidate too."""
    flags = [*flags_of(kind), *more]
    again = "--gradient_checkpointing"
    check(flags, [*SHARED, [*SHARED[0], again], *PACKED, PADDED[1], [*PACKED[0], again]], "float64")


def test_the_losses_and_dropout_do_something(flags_of):
    """Else the grids above would compare less than they say."""
    flags = [*flags_of("causal"), *SHARED[0]]
    whole = first_gradient(flags)
    for more in (
        ["--lora_dropout", "0.2"],
        *(["--loss", loss, "--tau", "1"] for loss in RANKING_LOSSES if loss != "ce"),
    ):
        assert distance(whole, first_gradient([*flags, *more])) > 1e-2, more


# -- mutations --------------------------------------------------------------------------------------------------


def mean_of_each_cut(patch: pytest.MonkeyPatch) -> None:
    """Each cut's loss is divided by its own questions."""
    make = rank_train.make_ranking_loss

    def made(*args):
        loss_fn = make(*args)
        return lambda scores, rewards, keep: loss_fn(scores, rewards, keep) / len(keep) * 16

    patch.setattr(rank_train, "make_ranking_loss", made)


def test_a_mean_over_each_cut_is_caught(flags_of):
    for kind, ways in (("causal", SHARED), ("bert", PACKED)):
        flags = [*flags_of(kind), *NO_DROPOUT]
        whole = first_gradient([*flags, *ways[0]])
        assert distance(whole, first_gradient([*flags, *ways[0]], harm=mean_of_each_cut)) <= BOUND["float32"]
        assert distance(whole, first_gradient([*flags, *ways[1]], harm=mean_of_each_cut)) > CAUGHT


@pytest.mark.parametrize("harm", [masks_by_place_in_the_cut, masks_by_cut])
def test_masks_that_hang_on_the_cuts_are_caught(harm, flags_of):
    for flags, ways in ((flags_of("bert"), PACKED), (flags_of("gpt2"), SHARED)):
        found = [first_gradient([*flags, *how], harm=harm) for how in ways]
        assert distance(found[0], found[1]) > CAUGHT
        assert distance(found[0], found[2]) > CAUGHT


# -- ranks ------------------------------------------------------------------------------------------------------


def outcome(rank: int, jobs: dict[str, tuple[list[str], str]], flags: list[str]) -> tuple[dict, dict | None]:
    """The gradients of all jobs on this rank, sent in small buckets; what a whole run of two steps says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.dist, "BUCKET_MIB", 1e-3)
        found = {name: first_gradient(*job) for name, job in jobs.items()}
    return found, rank_train.main(flags)


@pytest.mark.dist
def test_two_ranks_are_as_one(flags_of, tmp_path):
    jobs = {}
    for number in BOUND:
        jobs[f"shared, {number}"] = [*flags_of("causal"), "--lora_dropout", "0.2", *SHARED[2]], number
        jobs[f"packed, {number}"] = [*flags_of("bert"), *PACKED[1]], number
    jobs["no question"] = (
        [*flags_of("causal"), "--loss", "pairwise", "--batch_size", "1", *SHARED[1]],
        "float64",
    )
    jobs["overlap"] = [*flags_of("bert"), *PADDED[1], "--overlap"], "float64"
    flags = [
        *flags_of("causal"),
        *NO_DROPOUT,
        "--max_tokens",
        "60",
        "--max_steps",
        "2",
        "--learning_rate",
        "1e-3",
    ]
    two = [*flags, "--output_dir", str(tmp_path / "two")]
    (first, said), (second, same) = on_ranks(2, tmp_path, outcome, jobs, two)
    for name, (job, number) in jobs.items():
        assert distance(first_gradient([*job, *WHOLE], number), first[name]) <= BOUND[number], name
        assert torch.equal(first[name], second[name]), name
    alone = rank_train.main([*flags, "--output_dir", str(tmp_path / "one")])
    assert said.pop("run") == same.pop("run") == str(tmp_path / "two")
    alone.pop("run")
    assert said == same == pytest.approx(alone, rel=1e-3)  # every question is scored once
    scores = [np.load(tmp_path / name / "validation" / "logits.npy") for name in ("one", "two")]
    np.testing.assert_allclose(*scores, atol=1e-3)
