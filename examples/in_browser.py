"""The model in 8 bits, in a web page that computes by itself: no text leaves the reader's machine.

    python -m examples.export_onnx out/best onnx
    python -m examples.onnx_int8 out/best onnx
    npm install --prefix examples/browser --ignore-scripts
    python -m examples.in_browser onnx site         # a folder for any web server of files
    python -m http.server --bind 127.0.0.1 --directory site

transformers.js, Hugging Face's library for JavaScript, reads the same tokenizer.json and makes the
tokens; ONNX Runtime, compiled to WebAssembly, computes. Both come from npm into the folder, and
the page's Content-Security-Policy lets it fetch from nowhere else.
"""

import shutil
from pathlib import Path

from support import files
from support.errors import InputError, run_main
from support.options import OneLineParser

PAGE = Path(__file__).with_name("browser")
SHARED = Path(__file__).with_name("page")  # with serve.py
PACKAGES = PAGE / "node_modules"
LIBRARY = {  # of the packages; the last two are what transformers.min.js asks for
    "transformers.min.js": "@huggingface/transformers/dist",
    "ort-wasm-simd-threaded.asyncify.mjs": "onnxruntime-web/dist",
    "ort-wasm-simd-threaded.asyncify.wasm": "onnxruntime-web/dist",
}
MODEL = ["config.json", "tokenizer.json", "tokenizer_config.json", "model_quantized.onnx"]


def build_site(source: Path, site: Path, packages: Path = PACKAGES) -> int:
    """Writes a new folder with the page, the libraries and the model; returns its bytes."""
    wanted = {f"lib/{name}": packages / place / name for name, place in LIBRARY.items()}
    wanted |= {f"model/{name}": source / name for name in MODEL}
    wanted |= {name: PAGE / name for name in ("index.html", "page.js")}
    wanted |= {name: SHARED / name for name in ("style.css", "bars.js")}
    for path in wanted.values():
        if not path.is_file():
            raise InputError(f"{path}: is not there; `python -m examples.in_browser --help`")
    with files.written_whole(site, new=True) as temporary:
        for name, path in wanted.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
    return sum(path.stat().st_size for path in wanted.values())


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the folder that onnx_int8 left")
    parser.add_argument("site", type=Path, help="a new folder")
    given = parser.parse_args()
    size = build_site(given.source, given.site)
    print(
        f"{given.site}: {size / 1e6:.1f} MB; python -m http.server --bind 127.0.0.1 -d", given.site
    )


if __name__ == "__main__":
    run_main(main)
