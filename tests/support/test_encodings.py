"""Files in other encodings: the likely one is named, and iconv's command makes UTF-8 of them."""

import re
import subprocess

import pytest

from support.errors import InputError
from support.tables import Table

SENTENCES = {
    "BIG5": ["這部電影的故事很好看", "我不喜歡這個結局,太長了", "他們的表演是一流的"],
    "GB18030": ["这部电影的故事很好看", "我不喜欢这个结局,太长了", "他们的表演是一流的"],
    "SHIFT_JIS": ["この映画はとても面白かったです", "結末が長すぎると思います", "演技は素晴らしい"],
    "EUC-JP": ["この映画はとても面白かったです", "結末が長すぎると思います", "演技は素晴らしい"],
    "EUC-KR": ["이 영화는 정말 재미있었다", "결말이 너무 길어서 지루하다", "배우들의 연기가 좋다"],
    "CP1252": ["un film très réussi", "der Schluß ist zu lang, schade", "el niño está “solo”"],
    "CP1250": ["świetny film, żałuję że się skończył", "příliš žluťoučký kůň", "egy őrült éjszaka"],
    "CP1251": ["очень хороший фильм", "конец слишком длинный", "актёры играют прекрасно"],
    "KOI8-R": ["очень хороший фильм", "конец слишком длинный", "актёры играют прекрасно"],
    "CP1253": ["πολύ καλή ταινία", "το τέλος ήταν μεγάλο", "οι ηθοποιοί παίζουν ωραία"],
    "CP1254": [
        "çok güzel bir film, ağladım",
        "sonu çok uzun, sıkıldım",
        "oyuncular iyiydi şaşırdım",
    ],
}


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_the_likely_encoding_is_named_and_its_command_works(tmp_path, name, suffix):
    """Also where the first MB is plain."""
    texts = SENTENCES[name]
    lines = [f"{text.replace(',', ' ')}{{}}{n % 2}" for n, text in enumerate(texts * 4)]
    form = {"csv": ",", "tsv": "\t", "txt": " "}.get(suffix)
    lines = ["text{}label", *lines]
    if suffix == "jsonl":
        lines = [f'{{{{"text": "{line[:-3]}", "label": {line[-1]}}}}}' for line in lines[1:]]
    path = tmp_path / f"my table.{suffix}"
    text = "".join(line.format(form) + "\n" for line in lines)
    plain = '{"text": "x", "label": 0}\n' if suffix == "jsonl" else f"plain{form}0\n"
    plain *= 2**20 // len(plain) + 1
    for content in text, text.partition("\n")[0] + "\n" + plain + text.partition("\n")[2]:
        path.write_bytes(content.encode(name))
        with pytest.raises(InputError, match="is no UTF-8, and probably") as error:
            for _ in Table(path).batches():
                pass
        assert "\n" not in str(error.value)
        found = re.search(r"probably (\S+); convert it: (.*)", str(error.value))
        assert found[1] == name
    subprocess.run(found[2], shell=True, check=True)
    assert (tmp_path / f"my table-utf8.{suffix}").read_text(encoding="utf-8") == content
