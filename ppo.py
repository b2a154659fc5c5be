"""Improve a ranker from the rewards of its own choices: PPO over a question's K candidates, the loop written out below.

    make ppo                                                                  # after make rank, on its rows
    python ppo.py --policy runs/minilm/reports/RUN --train_data train.jsonl --val_data dev.jsonl
    python ppo.py --policy RUN --estimator rloo --samples 4 --train_data ... --val_data ...    # also grpo, exact
    python ppo.py --policy RUN --estimator supervised --train_data ... --val_data ...          # the rival, same batches
    python ppo.py --feedback FILE --policy CLASSIFIER --val_data ...                           # see ppo_feedback.py
    torchrun --standalone --nproc_per_node=8 ppo.py --policy RUN --train_data train.jsonl --val_data dev.jsonl
    python ppo.py --resume runs/minilm/reports/20260101-120000-seed0           # continue a run that was stopped

The policy is softmax(scores / temperature). A rollout scores --rollout_size questions, draws choices and learns their
rewards; then --ppo_epochs passes over it in batches of --batch_size questions. Who is told how many rewards a question:
ppo 1 (or --samples), rloo and grpo --samples, exact and supervised all K. What a candidate is worth that was not
chosen reaches no line of the update: core/rollouts.py tells, and counts. The best step is chosen on validation rows,
whose rewards are all known and not counted.

Tags on the lines that cost: GPU compute, H2D and D2H copies, COMM between ranks, SYNC where the host waits.
B questions of a cut, R of a rollout, K candidate places, G choices a question, N packed tokens.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

# fmt: off
import ppo_feedback
from archs.actor_critic import ActorCritic
from archs.build import freeze_unused, recompute_activations
from archs.embedding import densify_gradients, use_sparse_gradients
from archs.lora import adapters
from archs.policy import load_policy, policy_hash, read_policy
from archs.probes import choose_layout
from archs.saving import load_weights, save_model
from core.budget import Probe, settle_budgets, squares
from core.checkpoint import last_checkpoint, load_checkpoint, read_state, save_checkpoint
from core.dist import (
    broadcast_parameters, close_dist, on_main, reduce_gradients, step_seed, sum_over_ranks,
)
from core.errors import UserError, run_main
from core.evaluate import headline, score_rows
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
from core.plots import save_png
from core.ppo_plots import learning_figure, read_logs
from core.profile import StepProfiler, region
from core.rank_batches import RankCut, RankFeed
from core.rank_cache import open_rank_rows
from core.rank_encoder import RankEncoder
from core.rank_report import choose_rank_metric, measure_ranking, report_ranking
from core.replay import Replay
from core.report import is_better
from core.rollouts import Bandit, Rollout, draw_choices, explained_variance, minibatches, nothing_chosen
from core.runs import RunRecord
from core.schedule import GENTLE, auto_epochs, auto_learning_rate, lr_scale, parameter_groups, warmup_steps
from core.spent import check_uses, write_uses
from losses.ppo import (
    ESTIMATORS, adapted, choice_advantages, clipped_share, clipped_surrogate, clipped_value_loss, divergence,
    entropy, policy_log_probs,
)
from losses.ranking import best_cross_entropy

STATS = ("loss", "policy_loss", "value_loss", "entropy", "kl", "kl_old", "clip_share")  # sums over questions
MOST_PLACES = 16  # whose share of the choices is logged


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    parser.set_defaults(batch_size=16)
    add_lora_flags(parser)
    flag = parser.add_argument_group("policy").add_argument
    flag("--policy", default="", metavar="RUN",
         help="a run that rank_train.py (or this loop) made: where it starts; a value head starts anew")
    flag("--temperature", type=number(float, 1e-3), default=1.0, help="of softmax(scores / temperature)")
    flag("--group_field", default="", help="column whose values the report is divided by: num_steps, say")
    flag = parser.add_argument_group("rollouts").add_argument
    flag("--estimator", choices=(*ESTIMATORS, "supervised"), default="ppo",
         help="ppo: reward less a learnt value; rloo: less the other choices' mean; grpo: the same by their spread; "
              "exact: the expectation over all K rewards; supervised: cross-entropy on the best, as a rival")
    flag("--samples", type=number(int, 0), default=0, metavar="G",
         help="choices a question and rollout; 0: 1 for ppo, 4 for rloo and grpo")
    flag("--rollout_size", type=number(int, 1), default=64, help="questions a rollout, over all ranks")
    flag("--ppo_epochs", type=number(int, 1), default=2, help="passes of updates over each rollout")
    flag = parser.add_argument_group("PPO's loss").add_argument
    flag("--clip", type=number(float, 1e-6), default=0.2, help="the ratio counts between 1 - clip and 1 + clip")
    flag("--value_clip", type=number(float, 1e-6), default=0.2, help="of the value's change, in units of reward")
    flag("--value_coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    flag("--entropy_coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus, in nats")
    flag("--kl_coef", type=number(float, 0), default=0.05, help="weight of KL(policy || start), in nats, exact over K")
    flag("--kl_target", type=number(float, 0), default=0.0,
         help="nats: --kl_coef is doubled or halved after each rollout to hold KL(policy || start) there; 0: fixed")
    flag("--stop_kl", type=number(float, 0), default=0.0,
         help="nats: end a rollout's passes once a pass's mean KL(policy of the rollout || policy) is above; 0: never")
    args = parse(parser, argv)
    settle_lora_flags(args)
    for name in ("policy", "train_data", "val_data"):
        if not getattr(args, name):
            expected = "a run of rank_train.py" if name == "policy" else "ranking rows in JSON, JSONL or CSV"
            raise UserError(f"--{name}: not given; expected {expected}")
    if args.stop_kl and args.estimator == "supervised":
        raise UserError("--stop_kl: --estimator supervised has no policy of a rollout: drop the flag")
    if args.stop_kl and args.ppo_epochs == 1:
        raise UserError("--stop_kl: looks after each pass, and --ppo_epochs 1 has no further one: drop the flag")
    if args.kl_target and not args.kl_coef:
        raise UserError(f"--kl_target {args.kl_target}: adapts --kl_coef, which is 0; give one above 0")
    for name in ("overlap", "shard"):
        if getattr(args, name) in (True, "on"):
            raise UserError(f"--{name}: not in this loop: drop the flag")
    alone = args.estimator in ("rloo", "grpo") and args.samples == 1
    if alone or (args.samples and args.estimator in ("exact", "supervised")):
        expected = "2 or more" if alone else "no --samples: it sees all candidates"
        raise UserError(f"--samples {args.samples}: --estimator {args.estimator} expects {expected}")
    args.samples = args.samples or {"ppo": 1, "rloo": 4, "grpo": 4}.get(args.estimator, 0)
    about = read_policy(args.policy, ranks=True)
    args.architecture, args.model_name = about["architecture"], about["model_name"]
    return args
# fmt: on


def main(argv=None, on_eval=None) -> dict:
    """Improve a policy, evaluate, write the run folder.

    Args:    on_eval: called as on_eval(step, metrics) on rank 0 after each evaluation; what it raises is raised
             on every rank.
    Returns: the headline metrics on the validation rows, and "run", the run's folder.
    """
    argv = sys.argv[1:] if argv is None else [*argv]
    if is_about_feedback(argv):
        return ppo_feedback.main(argv, on_eval)
    return launch(fit, parse_args(argv), on_eval)


def is_about_feedback(argv: list[str]) -> bool:
    """Whether these flags are of the other loop: feedback is given, or a run of that loop resumed."""
    parser = Parser("", add_help=False)  # --help is for the loop's own parser
    for name in ("--feedback", "--resume", "--output_dir"):
        parser.add_argument(name, nargs="?", const="")
    args, _ = parser.parse_known_args(argv)
    if args.feedback is not None or args.resume is None:
        return args.feedback is not None
    run = Path(args.resume or args.output_dir or ".")
    return (run / "run.json").is_file() and "feedback" in RunRecord.read(run).record["arguments"]


def fit(args, folder, rank, world, device, on_eval) -> dict:
    """The run itself, from set-up to the final evaluation."""
    started = time.perf_counter()
    say = tqdm.write if rank == 0 else lambda *_: None
    amp_dtype = set_up_numbers(args, device, args.architecture)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    # -- policy: a trained ranker, the same on every rank; what it reads and how is its own affair --------------
    ranker, tokenizer, about, notes = load_policy(args, amp_dtype)
    model = ActorCritic(ranker, args.estimator == "ppo", args.architecture == "causal")
    encoder = RankEncoder(tokenizer, about["max_length"], about["prompt"], about["architecture"])

    # -- data: read, checked and tokenised once, on rank 0, into a memory-mapped cache -------------------------
    files = {"train": args.train_data, "validation": args.val_data, "test": args.test_data}
    flags = {"train": "--train_data", "validation": "--val_data", "test": "--test_data"}
    groups = {"train": "", "validation": args.group_field, "test": args.group_field}  # of the report
    knows_all = args.estimator in ("exact", "supervised")  # others cannot know which questions teach nothing
    data = {
        name: open_rank_rows(
            path, flags[name], encoder, args.cache_dir, groups[name], name == "train" and knows_all
        )
        for name, path in files.items()
        if path
    }
    train = data["train"]
    for name, rows in data.items():
        say(f"{name}: {rows.summary()}")
    for note in on_main(check_uses, data):
        say(note)

    layout, in_blocks = choose_layout(about["share_prefix"], args.packing, model.ranker, device, amp_dtype)
    model.to(device).train()
    if device.type == "cpu":
        use_sparse_gradients(model.inner)
    broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    if args.gradient_checkpointing:
        recompute_activations(model.inner)
    run_model = torch.compile(model, dynamic=True) if args.compile == "on" else model

    # -- batches: which questions make a rollout hangs on the seed and the epoch alone; how they are cut, on memory
    feeds = {
        name: RankFeed(rows, tokenizer.pad_token_id, device, layout, in_blocks, encoder.typed)
        for name, rows in data.items()
    }
    lengths = feeds["train"].lengths  # of a question with all its candidates
    longest = max(int(feed.lengths.max()) for feed in feeds.values())
    size = min(args.rollout_size, len(train))
    plan = make_plan(lengths, size, args.max_tokens, args.seed, device.type, packed=layout != "padded")
    if args.max_tokens != "auto":
        for feed in feeds.values():
            check_budget(feed.lengths, args.max_tokens, feed.rows.meta["path"])

    def num_updates(num_rows: int) -> int:
        return args.ppo_epochs * math.ceil(num_rows / args.batch_size)

    steps_per_epoch = len(train) // size * num_updates(size) + num_updates(len(train) % size)
    epochs = auto_epochs(steps_per_epoch, 1) if args.epochs == "auto" else args.epochs
    num_rollouts = math.ceil(epochs * plan.steps_per_epoch)
    sizes = [num_updates(len(plan.rows(i))) for i in range(min(num_rollouts, plan.steps_per_epoch))]
    first_steps = np.cumsum([0] + [sizes[i % len(sizes)] for i in range(num_rollouts)])  # of each rollout
    num_steps = min(int(first_steps[-1]), args.max_steps or math.inf)
    num_rollouts = int(np.searchsorted(first_steps, num_steps))
    eval_steps, save_steps = args.eval_steps or steps_per_epoch, args.save_steps or steps_per_epoch

    # -- losses: sums over questions, divided by the questions of the whole logical batch ------------------------
    bandit, kl_coef = Bandit(train), args.kl_coef

    def autocast():
        return torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None)

    def rank_scores(cut: RankCut) -> torch.Tensor:
        return run_model(cut)[0]  # (B, K)

    def forward_backward(cut: RankCut, part: Rollout, denom: float) -> torch.Tensor:
        with region("forward"):
            scores, values = run_model(cut)  # GPU  (B, K), (B,)
            log_probs = policy_log_probs(scores, cut.keep, args.temperature)  # GPU
            chosen, weights = log_probs.gather(1, part.choices), part.weights  # (B, G)
            kl = divergence(log_probs, part.reference, cut.keep).sum()  # exact, over all K
            value_loss, bonus = log_probs.new_zeros(()), entropy(log_probs, cut.keep).sum()
            if args.estimator == "supervised":
                loss = policy_loss = best_cross_entropy(scores.to(log_probs.dtype), part.rewards, cut.keep)
            else:
                ratio = chosen, part.old_log_probs
                policy_loss = clipped_surrogate(*ratio, part.advantages, weights, args.clip)
                loss = policy_loss + kl_coef * kl - args.entropy_coef * bonus
            if args.estimator == "ppo":
                pair = values, part.old_values
                value_loss = clipped_value_loss(*pair, part.rewards, weights, args.value_clip)
                loss = loss + args.value_coef * value_loss
        with region("backward"):
            scaler.scale(loss / denom).backward()  # GPU  nothing is sent here
        kl_old = divergence(part.policy, log_probs, cut.keep).sum()
        share = clipped_share(chosen, part.old_log_probs, weights, args.clip)
        sums = loss, policy_loss, value_loss, bonus, kl, kl_old, share
        return torch.stack([value.detach().float() for value in sums])  # on the device: no host wait

    @torch.no_grad()
    def roll_out(cut: RankCut, index: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        scores, values = run_model(cut)  # GPU
        log_probs = policy_log_probs(scores, cut.keep, args.temperature)
        return index, torch.cat([log_probs, values[:, None].to(log_probs.dtype)], dim=1)  # (B, K + 1)

    def learn(cut: RankCut, index: np.ndarray, rows: np.ndarray, rollout: Rollout, denom: int):
        place = torch.from_numpy(np.searchsorted(rows, index))  # of these questions in the rollout
        return forward_backward(cut, rollout.of(place.to(device, non_blocking=True)), denom)  # H2D GPU

    def score(name: str):
        kind = eval_budget, amp_dtype, rank, world
        return score_rows(model, rank_scores, feeds[name], *kind)  # GPU COMM D2H

    def probe(index: np.ndarray, is_training: bool = True) -> Probe:
        reset_peak(device)
        began, peak = time.perf_counter(), math.inf
        with contextlib.suppress(torch.OutOfMemoryError), autocast():
            cut = feeds["train"].cut(index)
            if is_training:
                forward_backward(cut, nothing_chosen(cut, args.samples), 1.0)  # GPU
            else:
                roll_out(cut, index)  # GPU
            peak = peak_bytes(device)  # SYNC
        return Probe(plan.cost([index]), squares(plan, [index]), peak, time.perf_counter() - began)

    with autocast():
        cut = feeds["train"].cut(plan.rows(0)[:1])
        forward_backward(cut, nothing_chosen(cut, args.samples), 1.0)  # GPU
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
    auto = "reward_ratio" if (data["validation"].rewards > 0).any() else "average_reward"
    metric = choose_rank_metric(auto if args.metric == "auto" else args.metric, data["validation"])
    profiler = StepProfiler(args.profile if rank == 0 else "", folder / "profile", device)
    hashes = {name: rows.meta["sha256"] for name, rows in data.items()}
    hashes |= {"policy": on_main(policy_hash, args.policy)}
    record = RunRecord.open(folder, args, device, world, data=hashes)
    start, step, stop, trained_s, rollout_s = 0, 0, False, 0.0, 0.0
    best = {"value": None, "step": 0, "waited": 0}  # waited: evaluations since
    skipped, streak = torch.zeros(2, device=device)  # steps without a finite gradient, and how many in a row
    saved = on_main(last_checkpoint, folder / "checkpoint") if args.resume else None
    if saved:
        load_checkpoint(saved, model, optimizer)  # H2D
        state = read_state(saved)
        start, step, stop, best = state["rollouts"], state["step"], state["stop"], state["best"]
        trained_s, rollout_s, bandit.told = state["train_s"], state["rollout_s"], state["told"]
        kl_coef = state["kl_coef"]
        skipped.fill_(state["skipped"])
        streak.fill_(state["streak"])
        scaler.load_state_dict(state["scaler"])
    facts = {"model": about, "num_steps": num_steps, "epochs": epochs, "num_parameters": num_params}
    facts |= {"max_tokens": {"train": budget.tokens, "eval": eval_budget.tokens}}
    facts |= {"memory_model": budget.memory, "budget_changes": budget.changes}
    facts |= {"num_trained": num_trained, "learning_rate": learning_rate, "layout": layout}
    facts |= {"loss": args.estimator, "metric": metric}
    log = None
    if not args.dry_run:
        on_main(lambda: record.write(**facts))
        on_main(write_uses, folder, data)
        log = RunLog(folder, step if saved else -1) if rank == 0 else None
    for note in notes:
        say(note)
    say(
        f"policy: {args.policy}, {num_params / 1e6:.1f} M parameters, {num_trained / 1e6:.1f} M trained, "
        f"{args.estimator}, told {args.samples or 'all'} reward(s) a question\n"
        f"plan: {num_rollouts} rollouts of {size} questions ({num_rollouts / plan.steps_per_epoch:.3g} epochs), "
        f"{num_steps} steps of {args.batch_size}, {world} rank(s), cuts of at most {budget.tokens} tokens, "
        f"learning rate {learning_rate:g}, {amp_dtype or 'float32'} on {device}\n"
        + ("dry run: nothing is written" if args.dry_run else f"run: {folder}")
        + (f", resumed after step {step}" if args.resume else "")
    )

    # -- where it starts: the reference's log-probabilities, K numbers a question, once and for all ---------------
    def log_policy(scores: np.ndarray) -> np.ndarray:
        table = torch.from_numpy(scores)
        return policy_log_probs(table, torch.from_numpy(~np.isnan(places)), args.temperature).numpy()

    places, path = train.table(train.rewards), folder / "reference.npy"
    bar = tqdm(total=num_steps, initial=step, unit=" step", disable=None if rank == 0 else True)
    meter = Meter(feeds["train"], trained_s)
    in_cuts = Replay(
        plan, feeds["train"], budget, meter, (rank, world), amp_dtype, None if args.dry_run else record, say
    )
    if saved:
        reference = np.load(path)
        start_scores = {name: np.load(folder / f"start_{name}.npy") for name in data if name != "train"}
    else:
        found = {name: score(name) for name in data}  # GPU COMM D2H
        reference = on_main(lambda: log_policy(found["train"]))  # COMM
        start_scores = {name: scores for name, scores in found.items() if name != "train"}
        metrics = on_main(lambda: measure_ranking(found["validation"], data["validation"]))
        best["value"] = metrics[metric]  # at step 0: the policy that it starts from can be the best
        if log:
            save_array(path, reference)
            for name, scores in start_scores.items():
                save_array(folder / f"start_{name}.npy", scores)
            save_model(folder / "best_model", model.ranker, tokenizer, about)  # D2H
            log.write(0, {f"eval/{name}": value for name, value in headline(metrics).items()})
        say(f"start       {in_short(metrics)}")

    # -- the loop ----------------------------------------------------------------------------------------------
    counts = {name: int(feed.lengths.sum()) for name, feed in feeds.items()}
    setup_s = time.perf_counter() - started
    evals_every = max(1, round(eval_steps / num_updates(size)))
    forecast = Forecast(
        start, num_rollouts, counts, evals_every, plan.steps_per_epoch, setup_s, trained_s, window=(1, 3)
    )
    for iteration in range(start, start if stop else num_rollouts):  # stop: patience had ended already
        meter.start()
        rows = np.sort(plan.rows(iteration))  # the questions of this rollout, over all ranks
        questions, keep = torch.from_numpy(rows), torch.from_numpy(~np.isnan(places[rows]))

        # rollout: what the policy would choose, and what that brings
        with region("rollout"):
            since = time.perf_counter()
            table = torch.zeros(len(rows), train.num_candidates + 1, device=device)
            if args.estimator != "supervised":
                for index, found in in_cuts(rows, step - 0.5, params, roll_out):  # GPU H2D  no_grad
                    table[torch.from_numpy(np.searchsorted(rows, index)).to(device)] = found.float()  # H2D
                table = sum_over_ranks(table)  # COMM  every rank has rolled out its own cuts: zeros elsewhere
            policy, values = table.cpu().split([train.num_candidates, 1], dim=1)  # D2H SYNC
            values = values.squeeze(1)
            if not policy.isfinite().all():
                raise UserError(
                    f"the policy's scores are not finite after step {step}: it has diverged; lower --learning_rate"
                )
            if args.estimator in ("exact", "supervised"):
                choices = torch.arange(train.num_candidates).expand(len(rows), -1).contiguous()
                weights, rewards = policy.exp() * keep, bandit.tell_all(questions)  # supervised: of no use
            else:
                choices = draw_choices(policy, keep, args.samples, step_seed(args.seed, iteration, 0))
                weights = torch.full(choices.shape, 1 / args.samples)
                rewards = bandit.tell(questions, choices)  # of these and no other
            advantages = rewards
            if args.estimator != "supervised":
                advantages = choice_advantages(args.estimator, rewards, weights, values)
            parts = choices, weights, policy.gather(1, choices), rewards, advantages, values, policy
            rollout = Rollout(*parts, torch.from_numpy(reference[rows])).to(device)  # H2D
            rollout_s += time.perf_counter() - since

        # updates: --ppo_epochs passes in logical batches; which questions make one hangs on seed and place alone
        done, num_tokens = int(first_steps[iteration]), int(lengths[rows].sum())
        passes, step_before, grad_norm = [], step, torch.zeros(())
        for epoch in range(args.ppo_epochs):
            sums, num_seen = torch.zeros(len(STATS), device=device), 0
            for batch in minibatches(len(rows), args.batch_size, step_seed(args.seed, iteration, 1 + epoch)):
                if step == num_steps:
                    break
                profiler.before(step)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * lr_scale(done, num_steps, num_warmup, args.schedule)

                for found in in_cuts(rows[batch], step, params, learn, rows, rollout, len(batch)):  # GPU H2D
                    sums += found
                with region("optim"):
                    densify_gradients(params)
                    reduce_gradients(params)  # COMM  once a step: flat buckets, summed over ranks
                    scaler.unscale_(optimizer)
                    grad_norm = torch.nn.utils.clip_grad_norm_(params, args.max_grad_norm or math.inf)  # GPU
                    is_finite = grad_norm.isfinite()
                    skipped, streak = skipped + ~is_finite, (streak + 1) * ~is_finite
                    if not scaler.is_enabled():  # an enabled one hands its own found_inf over
                        optimizer.found_inf = (~is_finite).float()  # the fused kernel skips the update
                    scaler.step(optimizer)  # GPU
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                step, done, num_seen = step + 1, done + 1, num_seen + len(batch)
                bar.update()
                count = int(lengths[rows[batch]].sum())
                if profiler.after(step - 1, count, count):
                    say(profiler.finish(profiler.speed(model, amp_dtype, peak_memory(device))))
            if num_seen:
                passes.append(sum_over_ranks(sums) / num_seen)  # COMM
            if args.stop_kl and float(passes[-1][STATS.index("kl_old")]) > args.stop_kl:  # SYNC  a pass
                break
        synchronize(device)  # SYNC  once a rollout
        num_passes = len(passes) + (args.estimator != "supervised")
        meter.stop(num_tokens * num_passes, steps=step - step_before)
        perf = {"rollout_frac": rollout_s / max(1e-9, meter.total_s)}
        stats = dict(zip(STATS, passes[-1].tolist(), strict=True))  # SYNC  means of the last pass
        if args.kl_target:
            kl_coef = adapted(kl_coef, stats["kl"], args.kl_target)
        if forecast.step(iteration + 1, num_tokens, meter.total_s):
            say(f"forecast: {forecast}")
        if args.dry_run:
            if forecast.is_made:
                bar.close()
                found = meter.fields() | peak_memory(device)  # COMM
                return on_main(report_dry_run, forecast, found, size, args.price_per_hour)
            continue

        is_last = iteration + 1 == num_rollouts
        is_eval = is_last or step // eval_steps > step_before // eval_steps
        if is_eval or step // args.log_steps > step_before // args.log_steps:
            now = {"train/loss": stats.pop("loss"), "train/grad_norm": float(grad_norm)}  # SYNC
            now |= {"train/skipped_steps": int(skipped), "train/lr": optimizer.param_groups[-1]["lr"]}  # SYNC
            check_streak(int(streak), args.max_bad_steps, step - 1, rows, args.train_data)  # SYNC
            now |= {"train/epoch": (iteration + 1) / plan.steps_per_epoch, "ppo/rewards_told": bandit.told}
            if args.estimator != "supervised":
                scored = bandit.score(questions, choices, weights)
                picked = scored.pop("picked")
                stats |= scored | {f"picked_{k}": share for k, share in enumerate(picked[:MOST_PLACES], 1)}
                stats |= {"kl_coef": kl_coef, "passes": len(passes)}
                if args.estimator == "ppo":
                    stats["explained_variance"] = explained_variance(values, rewards)
            else:
                stats = {name: stats[name] for name in ("entropy", "kl")}
            now |= {f"ppo/{name}": value for name, value in stats.items()}
            now |= {f"perf/{name}": value for name, value in perf.items()} | {"perf/train_s": meter.total_s}
            now |= meter.fields() | peak_memory(device)  # COMM
            if log:
                log.write(step, now)
            bar.set_postfix_str(f"reward {stats.get('reward', math.nan):.4f}, KL {stats['kl']:.4f}")

        if is_eval:
            metrics = on_main(measure_ranking, score("validation"), data["validation"])  # GPU COMM D2H
            best["waited"] += 1
            if is_better(metrics, metric, best["value"]):
                best = {"value": metrics[metric], "step": step, "waited": 0}
                on_main(save_model, folder / "best_model", model.ranker, tokenizer, about)  # D2H
            if log:
                told = {"ppo/rewards_told": bandit.told, "perf/train_s": meter.total_s}
                log.write(step, {f"eval/{name}": value for name, value in headline(metrics).items()} | told)
            epoch = (iteration + 1) / plan.steps_per_epoch
            say(f"step {step:5d}  epoch {epoch:5.2f}  {in_short(metrics)}{'  best' * (best['step'] == step)}")
            if on_eval:
                on_main(on_eval, step, metrics)
            stop = bool(args.patience and best["waited"] >= args.patience)

        if is_last or stop or in_cuts.asked or step // save_steps > step_before // save_steps:
            state = {"best": best, "stop": stop, "rollouts": iteration + 1, "told": bandit.told}
            state |= {"skipped": int(skipped), "streak": int(streak)}  # SYNC
            state |= {"kl_coef": kl_coef, "rollout_s": rollout_s}
            state |= {"train_s": meter.total_s, "scaler": scaler.state_dict()}
            on_main(save_checkpoint, folder / "checkpoint", step, model, optimizer, state)  # D2H
        if in_cuts.asked:
            say(stopped_text(in_cuts.asked, step, folder))
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
    on_main(save_model, folder / "final_model", model.ranker, tokenizer, about)  # D2H
    on_main(load_weights, model.ranker, folder / "best_model")  # H2D
    broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    scores = {name: score(name) for name in data if name != "train"}  # GPU COMM D2H
    bests = {"metric": metric, "value": best["value"], "step": best["step"]}
    total_s = time.perf_counter() - started
    say(f"forecast: {forecast}; took {in_words(meter.total_s - trained_s, total_s)}")
    facts = {"timings": {"train_s": meter.total_s, "total_s": total_s, "forecast_s": forecast.total_s}}
    facts |= {"best": bests, "peak_memory": peak_memory(device), "rewards_told": bandit.told}
    on_main(lambda: save_png(learning_figure(read_logs(folder)), folder / "learning.png"))
    return on_main(report_ranking, folder, record, log, data, scores, facts, start_scores)


def in_short(metrics: dict) -> str:
    """The line of an evaluation."""
    return (
        f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}  "
        f"reward_ratio {metrics['reward_ratio'] or 0:.4f}"
    )


if __name__ == "__main__":
    run_main(main)
    close_dist()  # only after success: after a failure the others would be waited for
