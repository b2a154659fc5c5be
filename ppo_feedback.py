"""Improve a classifier from people's feedback on its predictions: what `ppo.py --feedback` runs, the loop written out.

    python -m jobs.feedback collect RUN --data rows.jsonl --output feedback.json        # a file to fill in
    python ppo.py --feedback feedback.json --policy RUN --val_data dev.jsonl --test_data test.jsonl
    python ppo.py --feedback feedback.json --policy RUN --val_data dev.jsonl --estimator supervised    # the rival

A row is a choice that was made (predicted_labels) with its reward, 0.7 x feedback + 0.3 x accuracy (--reward_weights).
The loss is PPO's clipped one on that choice, with the mean of the other rows' rewards as its baseline, plus
--supervised_weight times the cross-entropy on true_labels where they are known, plus --kl_coef times the exact
KL(policy || start), so that what was known is kept. The policy that ratios are taken to is scored anew each epoch, so
the clip bounds an epoch's step, and the KL term the whole way.

Tags on the lines that cost: GPU compute, H2D and D2H copies, COMM between ranks, SYNC where the host waits.
B rows of a cut, n rows of the file, C classes, N packed tokens, T padded tokens.
"""

import contextlib
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

# fmt: off
from archs.build import freeze_unused, recompute_activations
from archs.embedding import densify_gradients, use_sparse_gradients
from archs.lora import adapters
from archs.policy import load_policy, policy_hash, read_policy
from archs.probes import choose_packing
from archs.saving import load_weights, save_model
from core.batches import Cut, Feed
from core.budget import Probe, settle_budgets, squares
from core.cache import RowSource, rows_in_memory
from core.change import change_text, measure_change
from core.checkpoint import (
    last_checkpoint, load_checkpoint, oldest_step, own_part, read_state, save_checkpoint,
)
from core.dist import broadcast_parameters, gather_to_main, on_main, reduce_gradients, sum_over_ranks
from core.errors import UserError
from core.evaluate import headline, measure, score_rows
from core.feedback import read_feedback, row_rewards
from core.files import save_array
from core.finite import check_streak
from core.flags import Parser, add_shared_flags, number, parse
from core.forecast import Forecast, in_words, report_dry_run, synchronize
from core.interrupt import Stopped, end_of_loop, stopped_text
from core.launch import launch, set_up_numbers
from core.logs import Meter, RunLog
from core.memory import peak_bytes, peak_memory, reset_peak
from core.model_flags import add_lora_flags, settle_lora_flags
from core.plan import check_budget, make_plan
from core.profile import StepProfiler, region
from core.prompts import Prompt, make_encoder
from core.replay import Replay
from core.report import choose_metric, is_better, report_run
from core.rows import RowFormat
from core.runs import RunRecord
from core.schedule import GENTLE, auto_epochs, auto_learning_rate, lr_scale, parameter_groups, warmup_steps
from core.spent import check_uses, write_uses
from losses.ppo import (
    clipped_share, clipped_surrogate, known_cross_entropy, label_divergence, label_log_probs, leave_one_out,
)

STATS = ("loss", "policy_loss", "supervised_loss", "kl", "clip_share", "reward")  # sums over rows


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    add_lora_flags(parser)
    parser.set_defaults(batch_size=16)
    flag = parser.add_argument_group("feedback").add_argument
    flag("--feedback", default="", metavar="FILE",
         help="rows {text, true_labels, predicted_labels, feedback}, feedback in [0, 1] or [-1, 1]")
    flag("--policy", default="", metavar="RUN", help="a run that train.py (or this loop) made: where it starts")
    flag("--estimator", choices=("ppo", "supervised"), default="ppo",
         help="supervised: plain fine-tuning on the same rows' true labels, as a rival")
    flag("--reward_weights", default="0.7,0.3", metavar="F,A", help="reward = F x feedback + A x accuracy")
    flag("--clip", type=number(float, 1e-6), default=0.2, help="the ratio counts between 1 - clip and 1 + clip")
    flag("--supervised_weight", type=number(float, 0), default=1.0, help="of the cross-entropy on true labels")
    flag("--kl_coef", type=number(float, 0), default=0.1, help="weight of KL(policy || start), in nats, exact")
    args = parse(parser, argv)
    settle_lora_flags(args)
    for name, expected in (("feedback", "rows with feedback"), ("policy", "a run of train.py"),
                           ("val_data", "rows that choose the best step")):
        if not getattr(args, name):
            raise UserError(f"--{name}: not given; expected {expected}")
    for name in ("overlap", "shard", "compile"):
        if getattr(args, name) in (True, "on"):
            raise UserError(f"--{name}: not in this loop: drop the flag")
    if args.train_data not in ("", args.feedback):
        raise UserError(f"--train_data {args.train_data}: with --feedback that file holds the rows: drop the flag")
    args.train_data = args.feedback
    about = read_policy(args.policy, ranks=False)
    args.architecture, args.model_name = about["architecture"], about["model_name"]
    args.baselines = False  # of report_run: TF-IDF has no training rows here
    read_weights(args.reward_weights)
    return args
# fmt: on


def read_weights(text: str) -> tuple[float, float]:
    """The weights of feedback and accuracy. Raises UserError."""
    parts = text.split(",")
    with contextlib.suppress(ValueError):
        found = tuple(map(float, parts))
        if len(found) == 2 and all(0 <= value < math.inf for value in found) and sum(found) > 0:
            return found
    raise UserError(
        f"--reward_weights {text}: expected two numbers of at least 0, of feedback and accuracy: 0.7,0.3"
    )


class Part(NamedTuple):
    """What an update learns from; first dimension n, or B of a cut."""

    actions: torch.Tensor  # (n,) int64, or (n, C) uint8 with several labels a row: what was predicted
    advantages: torch.Tensor  # (n, 1) float32
    rewards: torch.Tensor  # (n,) float32
    old_log_probs: torch.Tensor  # (n, 1) or (n, C) of the actions, under the policy at the start of the epoch
    start: torch.Tensor  # (n, C) scores of the starting policy
    truth: torch.Tensor  # (n,) int64, or (n, C) float32; anything where it is unknown
    known: torch.Tensor  # (n,) bool: whether the truth is known

    def to(self, device: torch.device) -> "Part":
        """Itself on the device. Cost: H2D."""
        return Part(*(part.to(device, non_blocking=True) for part in self))

    def of(self, index: np.ndarray) -> "Part":
        """The part of some rows. index: (B,) int. Cost: H2D."""
        place = torch.from_numpy(np.asarray(index, np.int64)).to(self.rewards.device, non_blocking=True)
        return Part(*(part.index_select(0, place) for part in self))


def main(argv=None, on_eval=None) -> dict:
    """Improve a classifier, evaluate, write the run folder. Arguments and result as ppo.main's."""
    return launch(fit, parse_args(argv), on_eval)


def fit(args, folder, rank, world, device, on_eval) -> dict:
    """The run itself, from set-up to the final evaluation."""
    started = time.perf_counter()
    say = tqdm.write if rank == 0 else lambda *_: None
    amp_dtype = set_up_numbers(args, device, args.architecture)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    # -- policy: a trained classifier without dropout, the same on every rank -----------------------------------
    model, tokenizer, about, notes = load_policy(args, amp_dtype)
    several, names = about["multi_label"], about["label_names"]
    row_format = RowFormat(**about["row_format"])
    prompt = Prompt(**about["prompt"]) if about.get("prompt") else None
    pair = bool(row_format.pair_field)
    encoder = make_encoder(tokenizer, about["max_length"], about["truncate"], pair, prompt)

    # -- data: the rows with feedback, small beside others, in memory; the rest from a memory-mapped cache ------
    given = read_feedback(args.feedback, "--feedback", names, several, pair)
    if args.estimator == "supervised" and not given.has_truth.any():
        raise UserError(f"--estimator supervised: no row of {args.feedback} has true_labels to learn from")
    if args.estimator == "supervised" and not given.has_truth.all():
        say(f"note: {int((~given.has_truth).sum())} rows without true_labels teach nothing here: left out")
        given = given.part(given.has_truth)
    say(f"feedback: {given.summary()}")
    labels = np.nan_to_num(given.truth).astype(np.uint8) if several else given.truth.astype(np.int32)
    rows_of = given.texts, given.pairs, labels, names, encoder, given.lines, args.feedback
    train = rows_in_memory(*rows_of)
    source = RowSource(encoder, row_format, args.cache_dir)
    data = {"train": train, "validation": source.open(args.val_data, "--val_data", train)}
    if args.test_data:
        data["test"] = source.open(args.test_data, "--test_data", train)
    for name in (name for name in data if name != "train"):
        say(f"{name}: {data[name].summary()}")
    for note in on_main(check_uses, data, "--feedback"):
        say(note)

    packed, in_blocks = choose_packing(args.packing, model, device, amp_dtype)
    model.to(device).train()
    if device.type == "cpu":
        use_sparse_gradients(model.inner)
    broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    if args.gradient_checkpointing:
        recompute_activations(model.inner)

    # -- batches: which rows make a step hangs on the seed and the epoch alone; how they are cut, on memory ------
    feeds = {
        name: Feed(rows, tokenizer.pad_token_id, device, packed, in_blocks, model.branches)
        for name, rows in data.items()
    }
    lengths = feeds["train"].lengths
    longest = max(int(feed.lengths.max()) for feed in feeds.values())
    plan = make_plan(lengths, args.batch_size, args.max_tokens, args.seed, device.type, packed=packed)
    if args.max_tokens != "auto":
        for feed in feeds.values():
            check_budget(feed.lengths, args.max_tokens, feed.rows.meta["path"])
    epochs = auto_epochs(len(train), args.batch_size) if args.epochs == "auto" else args.epochs
    num_steps = math.ceil(epochs * plan.steps_per_epoch)
    num_steps = min(num_steps, args.max_steps) if args.max_steps else num_steps
    eval_steps, save_steps = args.eval_steps or plan.steps_per_epoch, args.save_steps or plan.steps_per_epoch

    # -- loss: a sum over rows, divided by the rows of the whole logical batch ------------------------------------
    rewards = torch.from_numpy(row_rewards(given, *read_weights(args.reward_weights)))
    learnt = Part(
        torch.from_numpy(given.actions), leave_one_out(rewards)[:, None], rewards,
        torch.zeros(len(train), len(names) if several else 1), torch.zeros(len(train), len(names)),
        torch.from_numpy(labels).float() if several else torch.from_numpy(labels).long(),
        torch.from_numpy(given.has_truth),
    ).to(device)  # fmt: skip

    def autocast():
        return torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None)

    def forward_backward(cut: Cut, index: np.ndarray, learnt: Part, denom: float) -> torch.Tensor:
        part = learnt.of(index)  # H2D
        with region("forward"):
            scores = model(cut)  # GPU  packed (1, N) or padded (B, T) -> (B, C)
            chosen = label_log_probs(scores, part.actions, several)  # GPU  (B, 1) or (B, C)
            ratio, ones = (chosen, part.old_log_probs), torch.ones_like(chosen)
            policy_loss = clipped_surrogate(*ratio, part.advantages.expand_as(chosen), ones, args.clip)
            loss = supervised_loss = known_cross_entropy(scores, part.truth, part.known, several)
            kl = label_divergence(scores, part.start, several).sum()  # exact, over all C
            if args.estimator == "ppo":
                loss = policy_loss + args.supervised_weight * supervised_loss + args.kl_coef * kl
        with region("backward"):
            scaler.scale(loss / denom).backward()  # GPU  nothing is sent here
        share = clipped_share(*ratio, ones / ones.shape[1], args.clip)
        sums = loss, policy_loss, supervised_loss, kl, share, part.rewards.sum()
        return torch.stack([value.detach().float() for value in sums])  # on the device: no host wait

    def score(name: str):
        return score_rows(model, model, feeds[name], eval_budget, amp_dtype, rank, world)  # GPU COMM D2H

    def probe(index: np.ndarray, is_training: bool = True) -> Probe:
        reset_peak(device)
        began, peak = time.perf_counter(), math.inf
        with contextlib.suppress(torch.OutOfMemoryError), autocast(), torch.set_grad_enabled(is_training):
            cut = feeds["train"].cut(index)
            forward_backward(cut, index, learnt, 1.0) if is_training else model(cut)  # GPU
            peak = peak_bytes(device)  # SYNC
        return Probe(plan.cost([index]), squares(plan, [index]), peak, time.perf_counter() - began)

    with autocast():
        forward_backward(feeds["train"].cut(plan.rows(0)[:1]), plan.rows(0)[:1], learnt, 1.0)  # GPU
    notes += freeze_unused(model)  # a weight without a gradient must not decay
    params = [param for param in model.parameters() if param.requires_grad]
    num_params, num_trained = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in params)

    # -- optimiser: AdamW in one fused kernel; the learning rate is a function of the step ---------------------
    learning_rate = args.learning_rate
    if learning_rate == "auto":
        kind = num_params, args.architecture, bool(adapters(model.inner))
        learning_rate = GENTLE * auto_learning_rate(*kind)
    decays = args.weight_decay, args.layer_decay
    groups = parameter_groups(model, learning_rate, *decays, model.num_layers, args.lora_b_ratio)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    num_warmup = warmup_steps(args.warmup, num_steps)

    # -- memory: what a token costs on this model, loss and precision; from it the budgets of a cut -------------
    stored = RunRecord.read(folder).record if args.resume else None  # probed budgets are run state
    kind = plan, longest, num_trained, device, world
    budget, eval_budget = settle_budgets(args.max_tokens, stored, probe, *kind)  # GPU SYNC COMM  with auto
    optimizer.zero_grad(set_to_none=True)

    # -- run folder: made only now, when everything that a user can get wrong has been read --------------------
    metric = choose_metric(args.metric, data["validation"])
    profiler = StepProfiler(args.profile if rank == 0 else "", folder / "profile", device)
    hashes = {name: rows.meta["sha256"] for name, rows in data.items()}
    hashes |= {"policy": on_main(policy_hash, args.policy)}
    record = RunRecord.open(folder, args, device, world, data=hashes)
    start, stop, trained_s = 0, False, 0.0
    best = {"value": None, "step": 0, "waited": 0}  # waited: evaluations since
    skipped, streak = torch.zeros(2, device=device)  # steps without a finite gradient, and how many in a row
    sums, num_seen = torch.zeros(len(STATS), device=device), 0
    saved = on_main(last_checkpoint, folder / "checkpoint") if args.resume else None
    if saved:
        load_checkpoint(saved, model, optimizer)  # H2D
        state = read_state(saved)
        start, stop, best, trained_s = (state[key] for key in ("step", "stop", "best", "train_s"))
        sums.copy_(torch.tensor([own_part(parts, rank, world) for parts in zip(*state["sums"], strict=True)]))
        num_seen = state["num_seen"]
        skipped.fill_(state["skipped"])
        streak.fill_(state["streak"])
        scaler.load_state_dict(state["scaler"])
    facts = {"model": about, "num_steps": num_steps, "epochs": epochs, "num_parameters": num_params}
    facts |= {"max_tokens": {"train": budget.tokens, "eval": eval_budget.tokens}}
    facts |= {"memory_model": budget.memory, "budget_changes": budget.changes}
    facts |= {"num_trained": num_trained, "learning_rate": learning_rate}
    facts |= {"loss": args.estimator, "metric": metric}
    log = None
    if not args.dry_run:
        on_main(lambda: record.write(**facts))
        on_main(write_uses, folder, data)
        log = RunLog(folder, start if saved else -1) if rank == 0 else None
    for note in notes:
        say(note)
    say(
        f"policy: {args.policy}, {num_params / 1e6:.1f} M parameters, {num_trained / 1e6:.1f} M trained, "
        f"{len(names)} classes, {'several labels' if several else 'one label'} a row, {args.estimator}\n"
        f"plan: {num_steps} steps of {args.batch_size} rows ({num_steps / plan.steps_per_epoch:.3g} epochs), "
        f"{world} rank(s), {'packed' if packed else 'padded'} cuts of at most {budget.tokens} tokens, "
        f"learning rate {learning_rate:g}, {amp_dtype or 'float32'} on {device}\n"
        + ("dry run: nothing is written" if args.dry_run else f"run: {folder}")
        + (f", resumed after step {start}" if args.resume else "")
    )
    bar = tqdm(total=num_steps, initial=start, unit=" step", disable=None if rank == 0 else True)
    meter = Meter(feeds["train"], trained_s)
    keeper = None if args.dry_run else record
    in_cuts = Replay(plan, feeds["train"], budget, meter, (rank, world), amp_dtype, keeper, say, "--feedback")

    # -- where it starts: C scores a row, once and for all -------------------------------------------------------
    if saved:
        first_scores = {name: np.load(folder / f"start_{name}.npy") for name in data}
    else:
        first_scores = {name: score(name) for name in data}  # GPU COMM D2H
        first_scores["train"] = on_main(lambda: first_scores["train"])  # COMM
        metrics = on_main(lambda: measure(first_scores["validation"], data["validation"]))
        best["value"] = metrics[metric]  # at step 0: the policy that it starts from can be the best
        if log:
            for name, scores in first_scores.items():
                save_array(folder / f"start_{name}.npy", scores)
            save_model(folder / "best_model", model, tokenizer, about)  # D2H
            log.write(0, {f"eval/{name}": value for name, value in headline(metrics).items()})
        say(
            f"start       loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}  "
            f"{metric} {metrics[metric]:.4f}"
        )
    learnt = learnt._replace(start=torch.from_numpy(first_scores["train"]).to(device))  # H2D

    def old_scores(epoch: int, is_new: bool) -> np.ndarray:
        """(n, C) of the policy at the start of an epoch; kept for a run that is resumed within it."""
        path = folder / f"scores_{epoch}.npy"
        if not is_new:
            return np.load(path)
        scores = score("train") if epoch else first_scores["train"]  # GPU COMM D2H
        if log:
            save_array(path, scores)
        return on_main(lambda: scores)  # COMM

    # -- the loop ----------------------------------------------------------------------------------------------
    counts = {name: int(feed.lengths.sum()) for name, feed in feeds.items()}
    setup_s = time.perf_counter() - started
    forecast = Forecast(start, num_steps, counts, eval_steps, plan.steps_per_epoch, setup_s, trained_s)
    for step in range(start, start if stop else num_steps):  # stop: patience had ended when it was killed
        meter.start()
        epoch, place = divmod(step, plan.steps_per_epoch)
        if args.estimator == "ppo" and (place == 0 or step == start):
            scores = torch.from_numpy(old_scores(epoch, place == 0)).to(device)  # GPU COMM H2D
            learnt = learnt._replace(old_log_probs=label_log_probs(scores, learnt.actions, several))
        profiler.before(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_scale(step, num_steps, num_warmup, args.schedule)
        rows = plan.rows(step)  # the logical batch, over all ranks
        for found in in_cuts(rows, step, params, forward_backward, learnt, len(rows)):  # GPU H2D
            sums += found
        with region("optim"):
            densify_gradients(params)
            reduce_gradients(params)  # COMM  once a step: flat buckets, summed over ranks
            scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(params, args.max_grad_norm or math.inf)  # GPU
            is_finite = grad_norm.isfinite()
            skipped, streak = skipped + ~is_finite, (streak + 1) * ~is_finite
            if not scaler.is_enabled():  # an enabled one hands its own found_inf over
                optimizer.found_inf = (~is_finite).float()  # the fused kernel skips the update; no host wait
            scaler.step(optimizer)  # GPU
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        done, num_tokens, num_seen = step + 1, int(lengths[rows].sum()), num_seen + len(rows)
        if forecast.due(done):
            synchronize(device)  # SYNC  twice a run
        meter.stop(num_tokens)
        bar.update()
        if forecast.step(done, num_tokens, meter.total_s):
            say(f"forecast: {forecast}")
        if args.dry_run:
            if forecast.is_made:
                bar.close()
                perf = meter.fields() | peak_memory(device)  # COMM
                return on_main(report_dry_run, forecast, perf, args.batch_size, args.price_per_hour)
            continue
        if profiler.after(step, num_tokens, num_tokens):
            say(profiler.finish(profiler.speed(model, amp_dtype, peak_memory(device))))

        is_eval = done % eval_steps == 0 or done == num_steps
        if done % args.log_steps == 0 or is_eval:
            stats = dict(zip(STATS, (sum_over_ranks(sums) / num_seen).tolist(), strict=True))  # COMM SYNC
            now = {"train/loss": stats.pop("loss"), "train/grad_norm": float(grad_norm)}  # SYNC
            now |= {"train/skipped_steps": int(skipped), "train/lr": optimizer.param_groups[-1]["lr"]}  # SYNC
            check_streak(int(streak), args.max_bad_steps, step, rows, args.feedback)  # SYNC
            now |= {"train/epoch": done / plan.steps_per_epoch}
            now |= {f"ppo/{name}": value for name, value in stats.items()}
            now |= meter.fields() | peak_memory(device)  # COMM
            if log:
                log.write(done, now)
            bar.set_postfix_str(f"loss {now['train/loss']:.4f}, KL {stats['kl']:.4f}")
            sums.zero_()
            num_seen = 0

        if is_eval:
            metrics = on_main(measure, score("validation"), data["validation"])  # GPU COMM D2H
            best["waited"] += 1
            if is_better(metrics, metric, best["value"]):
                best = {"value": metrics[metric], "step": done, "waited": 0}
                on_main(save_model, folder / "best_model", model, tokenizer, about)  # D2H
            if log:
                log.write(done, {f"eval/{name}": value for name, value in headline(metrics).items()})
            say(
                f"step {done:5d}  epoch {done / plan.steps_per_epoch:5.2f}  loss {metrics['loss']:.4f}  accuracy "
                f"{metrics['accuracy']:.4f}  {metric} {metrics[metric]:.4f}{'  best' * (best['step'] == done)}"
            )
            if on_eval:
                on_main(on_eval, done, metrics)
            stop = bool(args.patience and best["waited"] >= args.patience)

        if done % save_steps == 0 or done == num_steps or stop or in_cuts.asked:
            state = {"best": best, "stop": stop, "num_seen": num_seen}
            state["sums"] = gather_to_main(sums.tolist())  # COMM SYNC
            state |= {"skipped": int(skipped), "streak": int(streak), "train_s": meter.total_s}  # SYNC
            state |= {"scaler": scaler.state_dict()}  # SYNC
            on_main(save_checkpoint, folder / "checkpoint", done, model, optimizer, state)  # D2H
            oldest = max(0, oldest_step(folder / "checkpoint") - 1) // plan.steps_per_epoch
            for path in folder.glob("scores_*.npy") if log else ():
                if int(path.stem.removeprefix("scores_")) < oldest:
                    path.unlink()  # no start from a checkpoint that is kept reads it
        if in_cuts.asked:
            say(stopped_text(in_cuts.asked, done, folder))
            raise Stopped(in_cuts.asked)
        if stop:
            say(f"stopped: {args.patience} evaluations without a better {metric} than at step {best['step']}")
            break
    end_of_loop()
    bar.close()
    table = profiler.finish()
    if table:
        say(table)

    # -- final evaluation: what was saved as best is loaded again, and each split is scored once ---------------
    on_main(save_model, folder / "final_model", model, tokenizer, about)  # D2H
    on_main(load_weights, model, folder / "best_model")  # H2D
    broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    scores = {name: score(name) for name in data if name != "train"}  # GPU COMM D2H
    total_s = time.perf_counter() - started
    say(f"forecast: {forecast}; took {in_words(meter.total_s - trained_s, total_s)}")
    facts = {"timings": {"train_s": meter.total_s, "total_s": total_s, "forecast_s": forecast.total_s}}
    facts |= {"best": {"metric": metric, "value": best["value"], "step": best["step"]}}
    facts |= {"peak_memory": peak_memory(device)}

    def report() -> dict:
        changes = {name: measure_change(first_scores[name], scores[name], data[name]) for name in scores}
        say("\n".join(change_text(change, name, several) for name, change in changes.items()))
        found = facts | {"change": changes}
        return report_run(args, folder, record, log, row_format, data, scores, found)

    return on_main(report)
