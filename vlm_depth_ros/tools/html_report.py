"""A judgement as one HTML file that needs nothing else: tables, charts and pictures inside it."""

import base64
from collections.abc import Sequence
from html import escape
import math
from typing import Any

import cv2
import numpy as np
from vlm_depth_ros.tools.analyses import RatioHistogram
from vlm_depth_ros.tools.charts import bar_chart
from vlm_depth_ros.tools.confidence_picture import confidence_picture
from vlm_depth_ros.tools.judged_confidence import ORDERS
from vlm_depth_ros.tools.metrics import METRICS

ABS_REL_STEP = 0.05
"""Width of the bins of the histogram over images; the last holds all from 1 up."""
JPEG_QUALITY = 88
STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1130px; margin: 2em auto }
table { border-collapse: collapse; margin: 0.6em 0 }
th, td { padding: 0.2em 0.7em; text-align: right; border-bottom: 1px solid #e3e6ea }
th:first-child, td:first-child { text-align: left }
svg { width: 640px; max-width: 100% }
img { max-width: 100% }
.bad { color: #a11 }
""".strip()

Pictures = Sequence[tuple[str, np.ndarray]]


def html_report(result: dict[str, Any], ratios: RatioHistogram, pictures: Pictures) -> str:
    """Write the page.

    Args:
        result: What ``vlm-depth evaluate --json`` writes.
        ratios: Prediction over truth, counted.
        pictures: Heading and (H, W, 3) uint8 RGB of each.
    """
    title = f'{result["weights"]} on {result["data"]}'
    parts = [
        '<!DOCTYPE html>',
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<style>{STYLE}</style></head><body>',
        f'<h1>{escape(title)}</h1>',
        _summary(result),
        *_failed(result['failed']),
        '<h2>Errors</h2>',
        _errors(result),
        '<p>AbsRel, SqRel, RMSE, RMSElog, log10 and SILog: lower is better; delta: higher is. '
        'Each image counts once. Blind rows never look at the image. Median-scaled forgives one '
        'factor per image, which a robot cannot.</p>',
        *_by_depth(result),
        *_by_scene(result),
        '<h2>Edges, ground, time</h2>',
        _analyses(result),
        *_confidence(result['confidence']),
        '<h2>How the errors are spread</h2>',
        _per_image_chart(result),
        _ratio_chart(ratios),
    ]
    for heading, picture in pictures:
        parts += [f'<h2>{escape(heading)}</h2>', _image(heading, picture)]
    return '\n'.join([*parts, '</body></html>', ''])


def _summary(result: dict[str, Any]) -> str:
    best, ratio = result['best_blind'], ratio_to_blind(result)
    return (
        f'<p>{result["images"]} images, rows {escape(result["rows"])}, protocol '
        f'{escape(result["protocol"])}{", averaged with the mirrored image" * result["flip"]}. '
        f'AbsRel is <b>{ratio:.3f}</b> of the best blind row ({escape(_words(best))}, fitted on '
        f'{escape(result["blind_fitted_on"])}).</p>'
    )


def _failed(failed: list[dict[str, str]]) -> list[str]:
    if not failed:
        return []
    lines = [f'<li>{escape(entry["reason"])}</li>' for entry in failed]
    head = f'<p class="bad"><b>Left out ({len(failed)}):</b></p>'
    return [head, '<ul class="bad">', *lines, '</ul>']


def _errors(result: dict[str, Any]) -> str:
    rows = {'unscaled': result['unscaled'], 'median-scaled': result['median_scaled']}
    rows |= {f'blind: {_words(name)}': errors for name, errors in result['blind'].items()}
    return _table(
        ('', *METRICS),
        [(name, *(f'{errors[m]:.4f}' for m in METRICS)) for name, errors in rows.items()],
    )


def _by_depth(result: dict[str, Any]) -> list[str]:
    total = sum(row['pixels'] for row in result['by_depth'])
    names = [metres_range(row) for row in result['by_depth']]
    table = [
        (name, f'{row["pixels"] / total:.1%}', f'{row["abs_rel"]:.3f}',
         f'{row["blind_abs_rel"]:.3f}', f'{row["bias"]:+.3f}', f'{row["rmse"]:.3f}',
         f'{row["delta1"]:.3f}')
        for name, row in zip(names, result['by_depth'])
    ]  # fmt: skip
    series = {
        'model': [row['abs_rel'] for row in result['by_depth']],
        'best blind row': [row['blind_abs_rel'] for row in result['by_depth']],
    }
    return [
        '<h2>By distance</h2>',
        _table(('true depth', 'pixels', 'AbsRel', 'blind', 'bias', 'RMSE m', 'delta1'), table),
        bar_chart(names, series, 'true depth', 'AbsRel'),
        '<p>Over all pixels of all images. Bias is the mean signed relative error: above zero, '
        'things are seen too far.</p>',
    ]


def _by_scene(result: dict[str, Any]) -> list[str]:
    scenes = sorted(result['by_scene'].items(), key=lambda item: -item[1]['abs_rel'])
    table = [
        (name, str(row['images']), f'{row["abs_rel"]:.3f}', f'{row["blind_abs_rel"]:.3f}',
         f'{row["rmse"]:.3f}', f'{row["delta1"]:.3f}')
        for name, row in scenes
    ]  # fmt: skip
    return [
        '<h2>By scene</h2>',
        _table(('scene, worst first', 'images', 'AbsRel', 'blind', 'RMSE m', 'delta1'), table),
    ]


def _analyses(result: dict[str, Any]) -> str:
    edges, ground, temporal = (result[name] for name in ('edges', 'ground', 'temporal'))
    rows = []
    if edges:
        rows += [
            ('AbsRel within 3 px of a true depth edge', f'{edges["abs_rel"]:.3f}'),
            ('AbsRel away from edges', f'{edges["interior_abs_rel"]:.3f}'),
        ]
    if ground:
        rows += [
            (f'ground: RMS distance from its plane ({ground["images"]} images)',
             f'{ground["rms_m"]:.3f} m ({ground["rms_share"]:.1%} of its depth)'),
            ('the same of the measured depth', f'{ground["true_rms_m"]:.3f} m'),
            ('ground: tilt against the true plane', f'{ground["tilt_deg"]:.1f}°'),
        ]  # fmt: skip
    if temporal:
        rows += [
            (f'change from frame to frame, median ({temporal["frame_pairs"]} pairs)',
             f'{temporal["predicted"]:.2%}'),
            ('the same of the measured depth', f'{temporal["true"]:.2%}'),
            ('excess', f'{temporal["excess"]:+.2%}'),
            ('flicker: change that the measured depth does not have',
             f'{temporal["flicker"]:.2%}'),
        ]  # fmt: skip
    missing = [
        text
        for known, text in (
            (edges, 'no edges (truth too sparse)'),
            (ground, 'no image with a flat ground'),
            (temporal, 'no sequence (no stamps)'),
        )
        if not known
    ]
    note = f'<p>Not measured: {", ".join(missing)}.</p>' if missing else ''
    return _table(('', ''), rows) + note


def _confidence(judged: dict[str, Any] | None) -> list[str]:
    if judged is None:
        return []
    rows = [
        (name, *(f'{value:.4f}' for value in judged[f'abs_rel_by_{order}']))
        for order, name in ORDERS.items()
    ]
    return [
        '<h2>Confidence</h2>',
        _image('confidence', confidence_picture(judged)),
        _table(('AbsRel without', *(f'{share:.0%}' for share in judged['dropped'])), rows),
        f'<p>Without the least confident 20 % AbsRel falls by {judged["gain_at_20_percent"]:.1%}. '
        f'Calibration error: {judged["calibration_error"]:.3f}. Farthest and '
        'nearest are those predicted; the pixels of all images are taken together.</p>',
    ]


def _per_image_chart(result: dict[str, Any]) -> str:
    edges = np.arange(0, 1 + ABS_REL_STEP / 2, ABS_REL_STEP)
    series = {
        name: np.bincount(
            np.clip(
                np.digitize([i[key] for i in result['per_image']], edges) - 1, 0, len(edges) - 1
            ),
            minlength=len(edges),
        ).tolist()
        for name, key in (('model', 'abs_rel'), ('best blind row', 'blind_abs_rel'))
    }
    labels = [f'{edge:.1f}' if i % 2 == 0 else '' for i, edge in enumerate(edges)]
    labels[-1] = '≥ 1'
    return bar_chart(labels, series, 'AbsRel of an image, from', 'images')


def _ratio_chart(ratios: RatioHistogram) -> str:
    share = (ratios.counts / ratios.counts.sum()).tolist()
    named = {0.25: '≤ 1/4', 0.5: '1/2', 1.0: '1', 2.0: '2', 4.0: '≥ 4'}
    labels = [named.get(round(float(ratio), 6), '') for ratio in ratios.ratios]
    return bar_chart(labels, {'model': share}, 'prediction over truth', 'share of pixels')


def ratio_to_blind(result: dict[str, Any]) -> float:
    """AbsRel as a share of the best blind row's; infinite beside one fitted on the only image."""
    blind = result['blind'][result['best_blind']]['abs_rel']
    return result['unscaled']['abs_rel'] / blind if blind else math.inf


def metres_range(row: dict[str, float]) -> str:
    """Name a bin of ``by_depth``."""
    if row['to_m'] is None:
        return f'> {row["from_m"]:g} m'
    return f'{row["from_m"]:g}–{row["to_m"]:g} m'


def _words(name: str) -> str:
    return name.replace('_', ' ')


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells) + '</tr>'

    return '\n'.join(['<table>', line(head, 'th'), *(line(row, 'td') for row in rows), '</table>'])


def _image(name: str, rgb: np.ndarray) -> str:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    encoded = base64.b64encode(data.tobytes()).decode()
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{encoded}">'
