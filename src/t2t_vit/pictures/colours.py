"""The palette of every picture and page."""

# Lines have Paul Tol's vibrant palette, told apart with every common kind of colour blindness; magenta is kept for
# mistakes. A page defines these colours as CSS variables of the same names, others in the dark.
LIGHT = {
    "ink": "#222222", "faint": "#686868", "grid": "#e4e4e4", "card": "#f6f7f9", "paper": "#ffffff", "wrong": "#d6246a",
    "line0": "#0077bb", "line1": "#ee7733", "line2": "#009988", "line3": "#33bbee", "line4": "#cc3311",
    "line5": "#555555",
}  # fmt: skip
DARK = {
    "ink": "#e8e8e8", "faint": "#a0a4ab", "grid": "#33373f", "card": "#1d2026", "paper": "#14161a", "wrong": "#ff6d9e",
    "line0": "#4db1ee", "line1": "#f59a5e",
}  # fmt: skip
LINE_COLOURS = [colour for name, colour in LIGHT.items() if name.startswith("line")]
