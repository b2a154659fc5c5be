"""The flags that say which model is trained and how its answer is read: for every loop that loads one."""

import argparse

from core.errors import UserError
from core.flags import Parser, number


# fmt: off
def add_model_flags(parser: Parser) -> None:
    """Architecture, head, prompt, dropout, attention."""
    flag = parser.add_argument_group("model").add_argument
    flag("--architecture", choices=("bert", "t5", "causal"),
         help="bert (default): any encoder that transformers has; t5: any encoder-decoder; causal: any decoder")
    flag("--approach", choices=("encoder", "generative"),
         help="another name: encoder is --architecture bert, generative is --architecture causal")
    flag("--model_name", default="builtin:minilm", help="builtin:minilm, a hub name, or a model folder")
    flag("--head", choices=("auto", "model", "words", "last", "linear", "mlp", "residual"), default="auto",
         help="model: the architecture's own; words: the answer is a label word; last: linear on the last token; the "
              "others stand on --pooling; auto: model for bert, words for t5 and causal")
    flag("--pooling", choices=("cls", "mean", "mean_max", "attention", "last"), default="mean",
         help="token states to one vector, for --head linear, mlp and residual")
    flag("--t5_head", choices=("words", "encoder"), default="words",
         help="words: the decoder answers; encoder: no decoder, the encoder's states are pooled, with a head")
    flag("--prompt", default="", metavar="TEXT",
         help="what stands around {text}, \\n is a line break; default with label words: 'classify: {text}' for t5, "
              "'{text}\\nAnswer:' for causal; else the text alone")
    flag("--chat", action="store_true", help="the prompt as a user's turn in the tokenizer's chat template")
    flag("--label_words", default="", metavar="A=word,B=word|FILE",
         help="the word that answers for each label, or JSON of {label: word}; default: the labels themselves")
    flag("--dropout", type=number(float, 0, 0.99), help="every dropout of model and head; default: the model's own")
    flag("--attention_dropout", type=number(float, 0, 0.99), help="of attention alone; default: as --dropout")
    flag("--attention", default="auto", help="auto (ours where it fits), or a name transformers knows: eager, sdpa")


def add_ranker_flags(parser: Parser) -> None:
    """Architecture, score head, prompt, dropout, attention of a ranker."""
    flag = parser.add_argument_group("model").add_argument
    flag("--architecture", choices=("bert", "causal"), default="bert",
         help="bert: any encoder, a question read with each candidate; causal: any decoder, read once for all of them")
    flag("--model_name", default="builtin:minilm", help="builtin:minilm, a hub name, or a model folder")
    flag("--max_length", type=number(int, 8, auto=True), default="auto",
         help="tokens of question, context and one candidate; a longer context loses its middle; auto: 2048, or what "
              "the model takes if that is less")
    flag("--head", choices=("mlp", "linear", "residual"), default="mlp", help="from a candidate's vector to its score")
    flag("--pooling", choices=("auto", "cls", "mean", "mean_max", "attention", "last"), default="auto",
         help="token states to a candidate's vector; auto: the last token for causal, the mean for bert")
    flag("--prompt", default="", metavar="TEXT",
         help="holds {question} and {context}, \\n is a line break, the candidate stands behind it; default: "
              "'{context}\\n\\nQuestion: {question}\\nAnswer:' for causal, '{question} {context}' for bert")
    flag("--dropout", type=number(float, 0, 0.99), help="every dropout of model and head; default: the model's own")
    flag("--attention_dropout", type=number(float, 0, 0.99), help="of attention alone; default: as --dropout")
    flag("--attention", default="auto", help="auto (ours where it fits), or a name transformers knows: eager, sdpa")


def add_lora_flags(parser: Parser) -> None:
    """Low-rank adapters beside a frozen base."""
    flag = parser.add_argument_group("LoRA").add_argument
    flag("--lora_rank", type=number(int, 0), default=0, help="rank of the adapters; 0: train all weights")
    flag("--lora_alpha", type=number(float, 1e-3, auto=True), default="auto",
         help="the update is scaled by alpha / rank; auto: twice the rank")
    flag("--lora_dropout", type=number(float, 0, 0.99), default=0.0, help="of the adapters' input alone")
    flag("--lora_targets", default="", metavar="REGEX",
         help="whole names of the modules adapted; default: every linear module of the layers (attention and MLP)")
    flag("--lora_rslora", action="store_true", help="rank-stabilised: scale by alpha / sqrt(rank)")
    flag("--lora_b_ratio", type=number(float, 1e-3), default=1.0,
         help="learning rate of the B matrices over that of A (LoRA+: 16, say)")
# fmt: on


def settle_model_flags(args: argparse.Namespace) -> None:
    """Fill in --architecture, in place, and see that what was given belongs together. Raises UserError."""
    meant = {"encoder": "bert", "generative": "causal", None: args.architecture or "bert"}[args.approach]
    if args.architecture not in (None, meant):
        raise UserError(
            f"--approach {args.approach} is --architecture {meant}, not {args.architecture}: give one"
        )
    args.architecture = meant
    settle_lora_flags(args)
    answers = args.head in ("auto", "words") and args.architecture != "bert" and args.t5_head == "words"
    if args.label_words and not answers:
        raise UserError(
            "--label_words: this model answers with a head, not with a word; see --architecture and --head"
        )


def settle_lora_flags(args: argparse.Namespace) -> None:
    """See that flags of adapters come with a rank. Raises UserError."""
    if not args.lora_rank:
        given = {
            "alpha": args.lora_alpha != "auto",
            "dropout": args.lora_dropout > 0,
            "targets": args.lora_targets,
        }
        given |= {"rslora": args.lora_rslora, "b_ratio": args.lora_b_ratio != 1}
        for name in (name for name, is_given in given.items() if is_given):
            raise UserError(
                f"--lora_{name}: needs --lora_rank, the adapters' rank: without it all weights are trained"
            )
