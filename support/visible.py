"""Whether a text shows anything at all."""

import unicodedata

# Spaces, marks that need a letter, and of the rest what is drawn as nothing: controls, formats,
# halves of surrogates. What is private or not yet assigned may well have a picture.
BLANK_CATEGORIES = ("Zs", "Zl", "Zp", "Mn", "Mc", "Me", "Cc", "Cf", "Cs")
BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"  # Hangul's fillers; Braille without a dot


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: empty, spaces, a NUL, U+200B, an accent alone."""
    for character in text:
        is_letter = unicodedata.category(character) not in BLANK_CATEGORIES
        if is_letter and character not in BLANK_LETTERS:
            return False
    return True
