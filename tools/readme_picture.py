"""Makes the README's picture: the first retrieval rows of two runs side by side.

    python -m tools.readme_picture runs/vanilla runs/hint

Both runs need the same data and seed, so that they have the same queries.
"""

import argparse
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "retrieval.png"
HEADINGS = ("vanilla: reconstruction alone", "hint: reconstruction and classes")
ROWS, ROW, FIRST, LEGEND = 5, 198.5, 50, 70  # in pixels of figures/retrieval.png
HEADING, GAP, SCALE = 56, 40, 0.5


def panel(workdir: Path, heading: str) -> Image.Image:
    """A run's first rows under a heading, with the figure's own legend."""
    figure = Image.open(workdir / "figures" / "retrieval.png").convert("RGB")
    rows = FIRST + round(ROWS * ROW)
    height = HEADING + rows + LEGEND
    made = Image.new("RGB", (figure.width, height), "white")
    font = ImageFont.truetype(findfont("DejaVu Sans:bold"), 30)
    ImageDraw.Draw(made).text((18, 8), heading, "#1e293b", font)
    made.paste(figure.crop((0, 0, figure.width, rows)), (0, HEADING))
    legend = figure.crop((0, figure.height - LEGEND, figure.width, figure.height))
    made.paste(legend, (0, HEADING + rows))
    return made


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2, type=Path)
    left, right = map(panel, parser.parse_args().runs, HEADINGS)
    whole = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + GAP, 0))
    size = round(whole.width * SCALE), round(whole.height * SCALE)
    small = whole.resize(size, Image.Resampling.LANCZOS)
    small.quantize(256, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {small.width} × {small.height}, {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
