"""Look inside a trained adapter: where tokens look, what a hook sees, which ΔW are large, and which
tokens moved a wrong answer.

    python -m examples.look_inside out/best "A flawed but engrossing thriller."
    python -m examples.look_inside out/best "This is no great film." --label negative

It prints states and sizes and the text in colour, and leaves attention.png, of the base and of the
trained model, and tokens.html in --out. A hook is a function that PyTorch calls whenever a module
has computed something: so a model shows what it does without one of its lines being changed. The
model is the plain one of bert.py; runtime/fast.py's attention never holds the probabilities.
"""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bert import BertForSequenceClassification
from data import load_tokenizer
from lora import LinearWithLoRA
from runtime import adapters
from support import errors, files, hub
from support.errors import InputError
from support.options import OneLineParser

BLUE, ORANGE = (86, 180, 233), (230, 159, 0)  # told apart by readers who see no red or no green


@contextlib.contextmanager
def outputs_of(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list to which each of these modules, as it computes, adds its output."""
    found = []
    hooks = [m.register_forward_hook(lambda module, x, y: found.append(y)) for m in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_maps(model: BertForSequenceClassification, ids: Tensor) -> Tensor:
    """Who looks at whom: of one text (1, S) the probabilities (layers, H, S, S)."""
    layers = model.bert.encoder.layer
    with outputs_of([layer.attention.self.dropout for layer in layers]) as found:
        model(ids)
    return torch.cat(found)


@torch.no_grad()
def hidden_states(model: BertForSequenceClassification, ids: Tensor) -> Tensor:
    """The vectors of one text (1, S) after the embeddings and each layer: (1 + layers, S, D)."""
    with outputs_of([model.bert.embeddings, *model.bert.encoder.layer]) as found:
        model(ids)
    return torch.cat(found)


@torch.no_grad()
def delta_sizes(model: nn.Module) -> dict[str, float]:
    """By layer the Frobenius norm of ΔW as a part of that of W."""
    return {
        name: (module.lora.delta().norm() / module.linear.weight.norm()).item()
        for name, module in model.named_modules()
        if isinstance(module, LinearWithLoRA)
    }


def leads(model: BertForSequenceClassification, ids: Tensor, right: int, embedded=None) -> Tensor:
    """How far the logit of the class `right` is above the best other one, of texts (M, S): (M,).

    `embedded` (M, S, D) takes the place of their word embeddings.
    """
    words = model.bert.embeddings.word_embeddings
    hook = words.register_forward_hook(lambda module, x, y: y if embedded is None else embedded)
    logits = model(ids)  # (M, C)
    hook.remove()
    others = torch.cat([logits[:, :right], logits[:, right + 1 :]], dim=1)  # (M, C - 1)
    return logits[:, right] - others.amax(1)


def token_scores(
    model: BertForSequenceClassification, ids: Tensor, right: int, mask_id: int, steps: int = 50
) -> dict[str, Tensor]:
    """How much each token of one text (1, S) speaks for the class `right`, in three ways: (S,).

    "gradient" times embedding, at the text itself (Simonyan et al., 2014, arXiv:1312.6034, and the
    input as a factor). "integrated": the same, as the mean over `steps` on the straight way from a
    text of [MASK] alone to this one (Sundararajan et al., 2017, arXiv:1703.01365); they add up to
    what lies between the two leads. "masked": what the lead loses when that token is [MASK].
    """
    words = model.bert.embeddings.word_embeddings
    own = words(ids).detach()  # (1, S, D)
    nothing = own.clone()
    nothing[:, 1:-1] = words.weight[mask_id].detach()  # [CLS] and [SEP] stay

    def gradient_at(points: Tensor) -> Tensor:  # (M, S, D) to (S, D)
        points.requires_grad_()
        lead = leads(model, ids.expand(len(points), -1), right, points)  # (M,)
        return torch.autograd.grad(lead.sum(), points)[0].mean(0)

    way = (torch.arange(steps) + 0.5) / steps  # (M,)
    points = nothing + way[:, None, None] * (own - nothing)  # (M, S, D)
    S = ids.shape[1]
    with torch.no_grad():
        masked = leads(model, ids.repeat(S, 1).fill_diagonal_(mask_id), right)  # (S,)
        lost = leads(model, ids, right) - masked  # (S,)
    lost[[0, -1]] = 0
    return {
        "gradient": (gradient_at(own.clone()) * own[0]).sum(-1),
        "integrated": (gradient_at(points) * (own - nothing)[0]).sum(-1),
        "masked": lost,
    }


def shades(scores: Tensor) -> list[tuple[int, int, int]]:
    """A colour for each score: blue speaks for, orange against, and white is nothing."""
    colors = []
    for score in (scores / scores.abs().max()).tolist():
        full = BLUE if score > 0 else ORANGE
        colors.append(tuple(round(255 + (part - 255) * abs(score)) for part in full))
    return colors


def as_terminal_line(tokens: list[str], scores: Tensor) -> str:
    words = []
    for token, (r, g, b) in zip(tokens, shades(scores), strict=True):
        words.append(f"\033[30;48;2;{r};{g};{b}m{errors.plain(token)}\033[0m")
    return " ".join(words)


def as_html(tokens: list[str], scores: Tensor, title: str) -> str:
    spans = []
    for token, score, color in zip(tokens, scores.tolist(), shades(scores), strict=True):
        style = f"background: rgb{color}; padding: 2px"
        spans.append(f'<span style="{style}" title="{score:+.3f}">{html.escape(token)}</span>')
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
    key = "blue speaks for the right class, orange against it; the numbers show under the mouse"
    return f"{head}<p>{html.escape(title)}</p>\n<p>{' '.join(spans)}</p>\n<p>({key})</p>\n"


def draw_attention(before: Tensor, after: Tensor, tokens: list[str], path: Path) -> None:
    """The heads of one layer, (H, S, S) each, in pairs of rows: of the base, and as trained."""
    from matplotlib.figure import Figure  # late, as it takes a second to import

    H, S, _ = before.shape
    columns = min(6, H)
    rows = 2 * -(-H // columns)
    figure = Figure(figsize=(1.6 * columns + 1, 1.6 * rows + 1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for head in range(H):
        row, column = 2 * (head // columns), head % columns
        for kind, maps in enumerate([before, after]):
            axis = axes[row + kind, column]
            axis.imshow(maps[head].numpy(), vmin=0, vmax=1, cmap="Blues")
            axis.set_title(f"head {head}, {'trained' if kind else 'base'}", fontsize=7)
            axis.set_yticks(range(S), tokens if column == 0 else [], fontsize=6)
            is_last = row + kind == rows - 1
            axis.set_xticks(range(S), tokens if is_last else [], fontsize=6, rotation=90)
    figure.supylabel("this token looks …", fontsize=8)
    figure.supxlabel("… at this one (dark: nearly at it alone)", fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition(":")[0])
    add = parser.add_argument
    add("adapter", help="a directory or Hub id")
    add("text")
    add("--label", default="", help="the right class (default: the one that is answered)")
    add("--layer", type=int, help="of attention.png (default: the last)")
    add("--out", default="out-inside", help="a new folder (default: %(default)s)")
    given = parser.parse_args()
    files.refuse_existing(given.out)
    model, source = adapters.open_with_base(hub.folder(given.adapter))
    base = BertForSequenceClassification.from_pretrained(source)
    tokenizer = load_tokenizer(source, 128)
    encoding = tokenizer.encode(given.text)
    ids, tokens = torch.tensor([encoding.ids]), encoding.tokens
    classes = [*model.config.id2label.values()]
    if len(classes) == 1:
        raise InputError(f"{given.adapter}: a regression has no class that a token could speak for")
    layers = range(model.config.num_hidden_layers)
    layer = layers[-1] if given.layer is None else given.layer
    if layer not in layers:
        raise InputError(f"--layer {layer}: the model has the layers 0 to {layers[-1]}")
    if given.label and given.label not in classes:
        raise InputError(f"--label {given.label}: the classes are {', '.join(classes)}")

    probabilities = model(ids).softmax(-1)[0].tolist()
    answered = max(range(len(classes)), key=probabilities.__getitem__)
    right = classes.index(given.label) if given.label else answered
    said = f"answered {classes[answered]}, {probabilities[answered]:.1%}"
    for number, states in enumerate(hidden_states(model, ids)):
        where = f"after layer {number - 1}" if number else "embeddings"
        near = torch.cosine_similarity(states[:1], states[1:]).mean()
        print(f"{where:<14} states {tuple(states.shape)}  cosine of [CLS] to the others {near:.2f}")
    for name, size in sorted(delta_sizes(model).items(), key=lambda pair: -pair[1]):
        print(f"‖ΔW‖ / ‖W‖ {size:.3f}  {name}")
    ways = token_scores(model, ids, right, mask_id=tokenizer.token_to_id("[MASK]"))
    print(f"{said}; blue (+) speaks for {classes[right]}, orange (-) against it")
    print(f"{'':<14}", *(f"{way:>10}" for way in ways))
    for place, token in enumerate(tokens):
        print(f"{errors.plain(token):<14}", *(f"{way[place]:>+10.2f}" for way in ways.values()))
    scores = ways["integrated"]
    print(as_terminal_line(tokens, scores))

    with files.written_whole(given.out, new=True) as folder:
        folder.mkdir()
        before, after = attention_maps(base, ids)[layer], attention_maps(model, ids)[layer]
        draw_attention(before, after, tokens, folder / "attention.png")
        title = f"{said}; right: {classes[right]}"
        (folder / "tokens.html").write_text(as_html(tokens, scores, title), encoding="utf-8")
    print(f"{given.out}/attention.png has layer {layer}, base and trained; {given.out}/tokens.html")


if __name__ == "__main__":
    errors.run_main(main)
