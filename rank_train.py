"""Train a ranker: pick the best of a question's K candidates, the question read once, the loop written out below.

    make rank                                                                  # built-in weights and rows
    python rank_train.py --train_data train.jsonl --val_data dev.jsonl         # an encoder, one GPU or the CPU
    python rank_train.py @presets/smollm2-135m --train_data train.jsonl --val_data dev.jsonl
    python rank_train.py @presets/llama-3-8b --train_data train.jsonl --val_data dev.jsonl --quick_test
    torchrun --standalone --nproc_per_node=8 rank_train.py @presets/llama-3-8b --train_data train.jsonl ...
    python rank_train.py --resume runs/smollm2-135m/finqa/20260101-120000-seed0   # continue a run that was stopped

Tags on the lines that cost: GPU compute, H2D and D2H copies, COMM between ranks, SYNC where the host waits.
B questions, K candidate places, P tokens of a prefix, S of a candidate, N packed tokens.
"""

import contextlib
import math
import os
import time

import numpy as np
import torch
from tqdm import tqdm

# fmt: off
from archs.build import build_model, freeze_unused, recompute_activations
from archs.dropout import MASKS, attention_dropout, check_exact_dropout
from archs.embedding import densify_gradients, use_sparse_gradients
from archs.loading import load_config, load_tokenizer, longest_input, resolve_name
from archs.lora import add_lora, find_targets, frozen_dtype
from archs.probes import choose_layout, draws_own_masks
from archs.saving import load_weights, save_model, saved_state
from archs.sharding import shard_model
from core.budget import (
    Probe, lower_for_resume, overlap_error, settle_budgets, shard_error, single_row_error, squares,
)
from core.checkpoint import (
    checkpoint_tensors, last_checkpoint, load_checkpoint, own_part, read_state, save_checkpoint,
)
from core.dist import (
    OverlappedReduction, broadcast_parameters, close_dist, gather_to_main, on_main,
    reduce_gradients, step_seed, sum_over_ranks, worst_of_ranks,
)
from core.errors import UserError, run_main
from core.evaluate import headline, score_rows
from core.finite import check_streak
from core.flags import Parser, add_shared_flags, check_shard, number, parse
from core.forecast import Forecast, in_words, report_dry_run, synchronize
from core.interrupt import Stopped, agree, end_of_loop, stopped_text
from core.launch import launch, set_up_numbers
from core.logs import Meter, RunLog
from core.memory import peak_bytes, peak_memory, release_cached, reset_peak
from core.model_flags import add_lora_flags, add_ranker_flags, settle_lora_flags
from core.plan import check_budget, make_plan
from core.profile import StepProfiler, region
from core.rank_batches import RankCut, RankFeed
from core.rank_cache import open_rank_rows
from core.rank_encoder import RankEncoder
from core.rank_report import choose_rank_metric, measure_ranking, report_ranking
from core.report import is_better
from core.runs import RunRecord
from core.schedule import auto_epochs, auto_learning_rate, lr_scale, parameter_groups, warmup_steps
from core.sharding import gathered, shares_in_words, whole
from core.spent import check_uses, write_uses
from losses.ranking import RANKING_LOSSES, make_ranking_loss

AUTO_LENGTH = 2048  # tokens of --max_length auto, or what the model takes if that is less
QUICK = {"max_steps": 4, "batch_size": 8}  # of --quick_test
QUICK_ROWS, QUICK_LENGTH = 32, 256
LAYOUT_WORDS = {
    "shared": "each question is read once, its candidates behind it",
    "packed": "each candidate with a question of its own (it cannot be shared exactly), packed without padding",
    "padded": "each candidate with a question of its own, padded",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_shared_flags(parser)
    add_ranker_flags(parser)
    add_lora_flags(parser)
    flag = parser.add_argument_group("ranking").add_argument
    flag("--loss", choices=RANKING_LOSSES, default="ce",
         help="ce: on the best candidate; soft_ce: on softmax(rewards / tau); pairwise: Bradley-Terry; listmle; "
              "expected_reward")
    flag("--tau", type=number(float, 1e-3), default=0.1, help="of --loss soft_ce, in units of reward")
    flag("--share_prefix", choices=("auto", "on", "off"), default="auto",
         help="decoders: read the question once for all candidates; auto: where a probe shows the same scores")
    flag("--group_field", default="", help="column whose values the report is divided by: num_steps, say")
    flag("--quick_test", action="store_true",
         help=f"{QUICK_ROWS} questions a file, {QUICK['max_steps']} steps, {QUICK_LENGTH} tokens: does it run?")
    args = parse(parser, argv)
    settle_lora_flags(args)
    if args.quick_test:
        vars(args).update(QUICK)
        if args.max_length != "auto":  # a preset's
            args.max_length = min(args.max_length, QUICK_LENGTH)
    args.pooling = ("last" if args.architecture == "causal" else "mean") if args.pooling == "auto" else args.pooling
    for name in ("train_data", "val_data"):
        if not getattr(args, name):
            raise UserError(f"--{name}: no file given; expected ranking rows in JSON, JSONL or CSV")
    return args
# fmt: on


def compare_with_separate(model, feed: RankFeed, question: int, loss_fn, precision: str) -> str:
    """Score one question with its prefix shared and each candidate with a prefix of its own, forward and backward; in
    words for the log. The gradients that the model had are gone."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # not what is in it; else nothing is recomputed, and memory may end
    whole = feed.cut([question])
    params = [param for param in model.parameters() if param.requires_grad]
    scores = model(whole)  # GPU  (1, K)
    loss = loss_fn(scores, whole.rewards, whole.keep)
    shared = torch.autograd.grad(loss, params, allow_unused=True)  # GPU
    leaf = scores.detach().requires_grad_()
    # what each score adds to the loss's gradient: a separate pass has no other candidate to weigh it against
    (weights,) = torch.autograd.grad(loss_fn(leaf, whole.rewards, whole.keep), leaf)
    apart = torch.zeros_like(scores)
    for k, cut in enumerate(feed.apart(question)):
        score = model(cut)  # GPU  (1, 1)
        (score * weights[0, k]).sum().backward()  # GPU  added up in .grad
        apart[0, k] = score.detach()[0, 0]
    pairs = [(a, p.grad) for a, p in zip(shared, params, strict=True) if a is not None and p.grad is not None]
    missed = sum((a.double() - b.double()).square().sum() for a, b in pairs).sqrt()
    norm = sum(b.double().square().sum() for _, b in pairs).sqrt()
    model.zero_grad(set_to_none=True)
    model.train()
    return (
        f"one question read once and {int(whole.keep.sum())} times, in {precision}: scores differ by at most "  # SYNC
        f"{(scores - apart).abs().max():.1e}, gradients by {missed / norm.clamp_min(1e-30):.1e} of their norm"
    )


def main(argv=None, on_eval=None) -> dict:
    """Train, evaluate, write the run folder.

    Args:    on_eval: called as on_eval(step, metrics) on rank 0 after each evaluation; what it raises is raised
             on every rank.
    Returns: the headline metrics on the validation rows, and "run", the run's folder.
    """
    return launch(fit, parse_args(argv), on_eval)


def fit(args, folder, rank, world, device, on_eval) -> dict:
    """The run itself, from set-up to the final evaluation."""
    started = time.perf_counter()
    say = tqdm.write if rank == 0 else lambda *_: None
    sharded = check_shard(args)
    amp_dtype = set_up_numbers(args, device, args.architecture)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    # -- data: read, checked and tokenised once, on rank 0, into a memory-mapped cache -------------------------
    model_folder = resolve_name(args.model_name)
    config, tokenizer = load_config(model_folder, args.architecture), load_tokenizer(model_folder)
    most = QUICK_LENGTH if args.quick_test else AUTO_LENGTH
    max_length = longest_input(config, tokenizer, args.max_length, most)
    encoder = RankEncoder(tokenizer, max_length, args.prompt, args.architecture)
    files = {"train": args.train_data, "validation": args.val_data, "test": args.test_data}
    flags = {"train": "--train_data", "validation": "--val_data", "test": "--test_data"}
    groups = {"train": "", "validation": args.group_field, "test": args.group_field}  # of the report
    most_rows = QUICK_ROWS if args.quick_test else 0
    data = {
        name: open_rank_rows(
            path, flags[name], encoder, args.cache_dir, groups[name], name == "train", most_rows
        )
        for name, path in files.items()
        if path
    }
    train = data["train"]
    for name, rows in data.items():
        say(f"{name}: {rows.summary()}")
    for note in on_main(check_uses, data):
        say(note)

    # -- model: pretrained, the same on every rank; float32, or with LoRA a frozen base in bfloat16 ---------------
    model, notes = build_model(
        model_folder, config, ["score"], False, args.head, args.pooling, args.dropout, args.attention,
        attention_drop=args.attention_dropout, architecture=args.architecture, ranks=True,
        dtype=frozen_dtype(amp_dtype) if args.lora_rank else torch.float32,
    )  # fmt: skip
    lora_alpha = 2.0 * args.lora_rank if args.lora_alpha == "auto" else args.lora_alpha
    if args.lora_rank:
        targets = find_targets(model.inner, args.lora_targets)
        settings = args.lora_rank, lora_alpha, args.lora_dropout, args.lora_rslora
        add_lora(model.inner, targets, *settings)
        notes.append(f"LoRA: rank {args.lora_rank}, alpha {lora_alpha:g}, beside {len(targets)} modules")
    draws_own = (args.exact_dropout or device.type == "cpu") and draws_own_masks(model)
    check_exact_dropout(args.exact_dropout, config, device, draws_own)
    if draws_own:
        notes.append("note: this model draws dropout masks of its own, which change with --max_tokens")
    # shared: a prefix and its candidates in one row; packed: a row for each candidate; padded: where neither fits
    layout, in_blocks = choose_layout(args.share_prefix, args.packing, model, device, amp_dtype)
    in_blocks = in_blocks or attention_dropout(config) > 0  # a flash kernel's masks differ between candidates
    model.train()
    if sharded:
        shard_model(model, device, amp_dtype)  # H2D COMM  layer by layer: no device ever holds all of it
    else:
        model.to(device)
        if device.type == "cpu":
            use_sparse_gradients(model.inner)
        broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    if args.gradient_checkpointing:
        recompute_activations(model.inner)
    run_model = torch.compile(model, dynamic=True) if args.compile == "on" else model

    # -- batches: which rows make a step hangs on the seed and the epoch alone; how they are cut, on memory ------
    feeds = {
        name: RankFeed(rows, tokenizer.pad_token_id, device, layout, in_blocks, encoder.typed)
        for name, rows in data.items()
    }
    lengths = feeds["train"].lengths  # of a question with all its candidates
    longest = max(int(feed.lengths.max()) for feed in feeds.values())
    packed = layout != "padded"
    plan = make_plan(lengths, args.batch_size, args.max_tokens, args.seed, device.type, packed=packed)
    if args.max_tokens != "auto":
        for feed in feeds.values():
            check_budget(feed.lengths, args.max_tokens, feed.rows.meta["path"])
    epochs = auto_epochs(len(train), args.batch_size) if args.epochs == "auto" else args.epochs
    num_steps = math.ceil(epochs * plan.steps_per_epoch)
    num_steps = min(num_steps, args.max_steps) if args.max_steps else num_steps
    eval_steps, save_steps = args.eval_steps or plan.steps_per_epoch, args.save_steps or plan.steps_per_epoch

    # -- loss: a sum over questions, divided by the questions of the whole logical batch -------------------------
    loss_fn = make_ranking_loss(args.loss, args.tau)

    def autocast():
        # with --shard weights come in this type; a cast kept from an earlier cut would give its gradient too late
        return torch.autocast(
            device.type, amp_dtype, enabled=amp_dtype is not None, cache_enabled=not sharded
        )

    def forward(cut: RankCut) -> torch.Tensor:
        return run_model(cut)  # shared or packed (1, N), padded (M, T) -> (B, K)

    def forward_backward(cut: RankCut, denom: float) -> torch.Tensor:
        with region("forward"):
            scores = forward(cut)  # GPU
            loss = loss_fn(scores, cut.rewards, cut.keep) / denom  # GPU  this cut's share of the batch's loss
        with region("backward"):
            scaler.scale(loss).backward()  # GPU  nothing is sent here, but with --shard (COMM, forward too)
        return loss.detach()  # a device scalar: no host wait

    def score(name: str):
        return score_rows(
            model, forward, feeds[name], eval_budget, amp_dtype, rank, world, sharded
        )  # GPU COMM D2H

    def held():
        """What is saved of a sharded model, on rank 0's host; None where each rank has all of it."""
        return gathered(saved_state(model)) if sharded else None  # COMM D2H

    def probe(index: np.ndarray, is_training: bool = True) -> Probe:
        reset_peak(device)
        began, peak = time.perf_counter(), math.inf
        with contextlib.suppress(torch.OutOfMemoryError), autocast(), torch.set_grad_enabled(is_training):
            cut = feeds["train"].cut(index)
            forward_backward(cut, 1.0) if is_training else forward(cut)  # GPU
            peak = peak_bytes(device)  # SYNC
        took = time.perf_counter() - began
        if sharded:
            if peak == math.inf:
                raise shard_error()
            took = worst_of_ranks(round(1e6 * took)) / 1e6  # COMM  all ranks end their probes together
        return Probe(plan.cost([index]), squares(plan, [index]), peak, took)

    MASKS.begin_step(step_seed(args.seed, 0, 0), True)  # so that probes pay for masks as steps do
    first, precision = int(plan.rows(0)[0]), str(amp_dtype or "float32").removeprefix("torch.")
    if layout == "shared" and not sharded:  # which wants the weights between passes
        with autocast():
            notes.append(compare_with_separate(model, feeds["train"], first, loss_fn, precision))  # GPU SYNC
    with autocast():
        forward_backward(feeds["train"].cut([first]), 1.0)  # GPU
    notes += freeze_unused(model)  # a weight without a gradient must not decay
    notes += [shares_in_words(model)] if sharded else []
    params = [param for param in model.parameters() if param.requires_grad]
    num_params, num_trained = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in params)

    # -- optimiser: AdamW in one fused kernel; the learning rate is a function of the step ---------------------
    learning_rate = args.learning_rate
    if learning_rate == "auto":
        learning_rate = auto_learning_rate(num_params, args.architecture, args.lora_rank > 0)
    decays = args.weight_decay, args.layer_decay
    groups = parameter_groups(model, learning_rate, *decays, model.num_layers, args.lora_b_ratio)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    num_warmup = warmup_steps(args.warmup, num_steps)
    overlap = OverlappedReduction(params) if args.overlap and world > 1 else None

    # -- memory: what a token costs on this model, loss and precision; from it the budgets of a cut -------------
    stored = RunRecord.read(folder).record if args.resume else None  # probed budgets are run state
    sizes = plan, longest, num_trained // (world if sharded else 1), device, world  # a rank's moments
    budget, eval_budget = settle_budgets(args.max_tokens, stored, probe, *sizes)  # GPU SYNC COMM  with auto
    optimizer.zero_grad(set_to_none=True)

    # -- run folder: made only now, when everything that a user can get wrong has been read --------------------
    metric = choose_rank_metric(args.metric, data["validation"])
    profiler = StepProfiler(args.profile if rank == 0 else "", folder / "profile", device)
    hashes = {name: rows.meta["sha256"] for name, rows in data.items()}
    record = RunRecord.open(folder, args, device, world, data=hashes)
    start, stop, log_start, trained_s = 0, False, 0, 0.0
    best = {"value": None, "step": 0, "waited": 0}  # waited: evaluations since
    loss_sum, skipped, streak = torch.zeros(3, device=device)  # of this rank; steps, and how many in a row
    saved = on_main(last_checkpoint, folder / "checkpoint") if args.resume else None
    if saved:
        load_checkpoint(saved, model, optimizer)  # H2D
        state = read_state(saved)
        start, stop, log_start, best = state["step"], state["stop"], state["log_start"], state["best"]
        trained_s = state["train_s"]
        loss_sum.fill_(own_part(state["loss_sums"], rank, world))
        skipped.fill_(state["skipped"])
        streak.fill_(state["streak"])
        scaler.load_state_dict(state["scaler"])
    about = {"task": "rank", "architecture": args.architecture, "head": args.head, "pooling": args.pooling}
    about |= {"model_name": args.model_name, "prompt": encoder.prompt, "max_length": max_length}
    if args.lora_rank:
        about["base_model"] = os.path.abspath(model_folder) if os.path.isdir(model_folder) else model_folder
        about["lora"] = dict(zip(("rank", "alpha", "dropout", "rslora"), settings, strict=True))
    about["amp"] = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "off"}[amp_dtype]
    about |= {"label_names": ["score"], "multi_label": False, "attention": args.attention}
    about |= {"share_prefix": args.share_prefix}
    facts = {"model": about, "num_steps": num_steps, "epochs": epochs, "num_parameters": num_params}
    facts |= {"max_tokens": {"train": budget.tokens, "eval": eval_budget.tokens}}
    facts |= {"memory_model": budget.memory, "budget_changes": budget.changes}
    facts |= {"num_trained": num_trained, "learning_rate": learning_rate, "loss": args.loss, "metric": metric}
    facts |= {"layout": layout}
    log = None
    if not args.dry_run:
        on_main(lambda: record.write(**facts))
        on_main(write_uses, folder, data)
        log = RunLog(folder, start) if rank == 0 else None
    for note in notes:
        say(note)
    say(
        f"model: {args.model_name}, {num_params / 1e6:.1f} M parameters, {num_trained / 1e6:.1f} M trained, "
        f"{args.loss}; {LAYOUT_WORDS[layout]}\n"
        f"plan: {num_steps} steps of {args.batch_size} questions ({num_steps / plan.steps_per_epoch:.3g} epochs), "
        f"{world} rank(s), cuts of at most {budget.tokens} tokens, "
        f"learning rate {learning_rate:g}, {amp_dtype or 'float32'} on {device}\n"
        + ("dry run: nothing is written" if args.dry_run else f"run: {folder}")
        + (f", resumed after step {start}" if args.resume else "")
    )

    # -- the loop ----------------------------------------------------------------------------------------------
    bar = tqdm(total=num_steps, initial=start, unit=" step", disable=None if rank == 0 else True)
    meter = Meter(feeds["train"], trained_s)
    counts = {name: int(feed.lengths.sum()) for name, feed in feeds.items()}
    setup_s = time.perf_counter() - started
    forecast = Forecast(start, num_steps, counts, eval_steps, plan.steps_per_epoch, setup_s, trained_s)
    for step in range(start, start if stop else num_steps):  # stop: patience had ended when it was killed
        meter.start()
        profiler.before(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_scale(step, num_steps, num_warmup, args.schedule)
        rows = plan.rows(step)  # the logical batch, over all ranks
        denom = len(rows)  # questions, over all ranks; a Python number
        while True:  # once, unless memory ends
            torch.manual_seed(step_seed(args.seed, step, rank))  # resume needs no generator state
            MASKS.begin_step(step_seed(args.seed, step, 0), True)  # a question's candidates share their masks
            cuts = plan.cuts(rows, budget.at(step), rank, world)  # this rank's micro-batches
            fillers = plan.fillers(rows, budget.at(step), rank, world) if sharded else []
            step_loss, fault, num_done = torch.zeros((), device=device), 0, 0
            try:
                with autocast():  # around all cuts: each weight is cast once a step
                    for cut in feeds["train"](cuts + fillers):  # H2D  pinned, non_blocking, one cut ahead
                        if overlap and num_done == len(cuts) - 1:
                            overlap.arm()  # COMM  from here on, during backward
                        # with --shard COMM; every rank runs as many cuts, and a filler's loss is x / inf = 0
                        step_loss += forward_backward(cut, denom if num_done < len(cuts) else math.inf)  # GPU
                        num_done += 1
            except torch.OutOfMemoryError:
                if overlap:
                    raise overlap_error() from None
                if sharded:
                    raise shard_error(lower_for_resume(folder, budget, step, rank)) from None
                failed = cuts[num_done]
                fault = 1 if len(failed) > 1 else 2 + int(failed[0])  # to be split; or the row that cannot be
            fault, asked = agree(fault)  # COMM  over gloo: no device waits; asked: to end, by a signal
            if not fault:
                break
            if fault > 1:
                peak_mib = peak_memory(device)["mem/peak_mib"]
                raise single_row_error(fault - 2, lengths[fault - 2], peak_mib)
            optimizer.zero_grad(set_to_none=True)  # the same step again, in smaller cuts
            release_cached(device)
            dearest = worst_of_ranks(max((plan.cost([cut]) for cut in cuts), default=0))  # COMM
            changes = {"budget_changes": budget.lower(step, dearest)}
            if not args.dry_run:
                on_main(lambda found=changes: record.write(**found))  # on disk before the update
            say(f"step {step}: out of memory, done again with cuts of at most {budget.at(step)} tokens")
        with region("optim"):
            densify_gradients(params)
            if overlap:
                overlap.finish()  # COMM
            elif not sharded:  # where each cut's backward pass has summed them already
                reduce_gradients(params)  # COMM  once a step: flat buckets, summed over ranks
            scaler.unscale_(optimizer)
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(params, args.max_grad_norm or math.inf))  # GPU
            is_finite = grad_norm.isfinite()  # of all ranks' sum (with --shard COMM): the same everywhere
            skipped, streak = skipped + ~is_finite, (streak + 1) * ~is_finite
            loss_sum += step_loss.where(is_finite, 0)
            if not scaler.is_enabled():  # an enabled one hands its own found_inf over
                optimizer.found_inf = (~is_finite).float()  # the fused kernel skips the update; no host wait
            scaler.step(optimizer)  # GPU
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        done, num_tokens = step + 1, int(lengths[rows].sum())
        if forecast.due(done):
            synchronize(device)  # SYNC  twice a run
        meter.stop(num_tokens, plan.cost(cuts), budget.at(step) * len(cuts), budget.predicted_mib(plan, cuts))
        bar.update()
        if forecast.step(done, num_tokens, meter.total_s):
            say(f"forecast: {forecast}")
        if args.dry_run:
            if forecast.is_made:
                bar.close()
                perf = meter.fields() | peak_memory(device)  # COMM
                return on_main(report_dry_run, forecast, perf, args.batch_size, args.price_per_hour)
            continue
        if profiler.after(step, num_tokens, plan.cost(cuts)):
            memory = {"mem/predicted_mib": meter.predicted_mib} | peak_memory(device)
            say(profiler.finish(profiler.speed(model, amp_dtype, memory)))

        is_eval = done % eval_steps == 0 or done == num_steps
        if done % args.log_steps == 0 or is_eval:  # before an evaluation too: its wait is not training's
            meter.start()
            loss = float(sum_over_ranks(loss_sum)) / (done - log_start)  # COMM SYNC
            meter.stop()
            now = {"train/loss": loss, "train/grad_norm": float(grad_norm)}  # SYNC
            now["train/skipped_steps"] = int(skipped)  # SYNC
            check_streak(int(streak), args.max_bad_steps, step, rows, args.train_data)  # SYNC
            now |= {"train/lr": optimizer.param_groups[-1]["lr"], "train/epoch": done / plan.steps_per_epoch}
            now |= meter.fields() | peak_memory(device)  # COMM
            if log:
                log.write(done, now)
            bar.set_postfix_str(f"loss {loss:.4f}, {now['perf/tokens_per_s']:.0f} tokens/s")
            loss_sum.zero_()
            log_start = done

        if is_eval:
            metrics = on_main(measure_ranking, score("validation"), data["validation"])  # GPU COMM D2H
            best["waited"] += 1
            if is_better(metrics, metric, best["value"]):
                best = {"value": metrics[metric], "step": done, "waited": 0}
                on_main(save_model, folder / "best_model", model, tokenizer, about, held())  # D2H COMM
            if log:
                log.write(done, {f"eval/{name}": value for name, value in headline(metrics).items()})
            say(
                f"step {done:5d}  epoch {done / plan.steps_per_epoch:5.2f}  loss {metrics['loss']:.4f}  accuracy "
                f"{metrics['accuracy']:.4f}  reward_ratio {metrics['reward_ratio'] or 0:.4f}"
                f"{'  best' * (best['step'] == done)}"
            )
            if on_eval:
                on_main(on_eval, done, metrics)
            stop = bool(args.patience and best["waited"] >= args.patience)

        if done % save_steps == 0 or done == num_steps or stop or asked:
            state = {"best": best, "stop": stop, "log_start": log_start, "skipped": int(skipped)}  # SYNC
            state |= {"streak": int(streak), "train_s": meter.total_s, "scaler": scaler.state_dict()}  # SYNC
            state["loss_sums"] = gather_to_main(float(loss_sum))  # COMM SYNC
            files = gathered(checkpoint_tensors(model, optimizer)) if sharded else None  # COMM D2H
            kept = done, model, optimizer, state, None, files
            on_main(save_checkpoint, folder / "checkpoint", *kept)  # D2H
        if asked:
            say(stopped_text(asked, done, folder))
            raise Stopped(asked)
        if stop:
            say(f"stopped: {args.patience} evaluations without a better {metric} than at step {best['step']}")
            break
    end_of_loop()
    bar.close()
    table = profiler.finish()
    if table:
        say(table)

    # -- final evaluation: what was saved as best is loaded again, and each split is scored once ---------------
    on_main(save_model, folder / "final_model", model, tokenizer, about, held())  # D2H COMM
    if sharded:
        load_weights(model, folder / "best_model")  # H2D  each rank its part
    else:
        on_main(load_weights, model, folder / "best_model")  # H2D
        broadcast_parameters([*model.parameters(), *model.buffers()])  # COMM
    scores = {name: score(name) for name in data if name != "train"}  # GPU COMM D2H
    bests = {"metric": metric, "value": best["value"], "step": best["step"]}
    total_s = time.perf_counter() - started
    say(f"forecast: {forecast}; took {in_words(meter.total_s - trained_s, total_s)}")
    facts = {"timings": {"train_s": meter.total_s, "total_s": total_s, "forecast_s": forecast.total_s}}
    facts |= {"best": bests, "peak_memory": peak_memory(device)}
    return on_main(report_ranking, folder, record, log, data, scores, facts)


if __name__ == "__main__":
    run_main(main)
    close_dist()  # only after success: after a failure the others would be waited for
