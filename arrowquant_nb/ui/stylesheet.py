"""How the app looks: JupyterLab's own variables with fallbacks, so that it follows the theme there and in Voila."""

from typing import Final

__all__ = ["STYLE"]

_DARK: Final = """
  --aq-ink: #E8EAED; --aq-quiet: #9AA0A6; --aq-line: #3A424B; --aq-ground: #111111; --aq-raised: #1D2126;
  --aq-focus: #56B4E9;
  --jp-ui-font-color0: #E8EAED; --jp-ui-font-color1: #E8EAED; --jp-ui-font-color2: #C3C7CC;
  --jp-layout-color0: #111111;
  --jp-layout-color1: #16191D; --jp-layout-color2: #23282E; --jp-layout-color3: #353C44; --jp-border-color1: #4A525C;
  --jp-content-font-color0: #E8EAED; --jp-content-font-color1: #E8EAED; --jp-border-color2: #3A424B;
  --jp-widgets-label-color: #E8EAED; --jp-widgets-readout-color: #E8EAED; --jp-widgets-color: #E8EAED;
  --jp-widgets-input-color: #E8EAED; --jp-widgets-input-background-color: #16191D;
  --jp-widgets-input-border-color: #4A525C;
"""
# The drop-downs' own arrow is dark; the same shape in the ink of dark pages.
_ARROW: Final = (
    "url(\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath "
    "fill='%23E8EAED' d='M5.2 5.9L9 9.7l3.8-3.8 1.2 1.2L9 12.1 4 7.1z'/%3E%3C/svg%3E\")"
)
_LIGHT: Final = """
  --aq-ink: #1B1B1B; --aq-quiet: #5F6368; --aq-line: #D5D9DE; --aq-ground: #FFFFFF; --aq-raised: #F4F6F8;
  --aq-focus: #0072B2;
  --jp-ui-font-color0: #1B1B1B; --jp-ui-font-color1: #1B1B1B; --jp-ui-font-color2: #3C4043;
  --jp-layout-color0: #FFFFFF;
  --jp-layout-color1: #FFFFFF; --jp-layout-color2: #EEF0F2; --jp-layout-color3: #D5D9DE; --jp-border-color1: #B0B6BD;
  --jp-content-font-color0: #1B1B1B; --jp-content-font-color1: #1B1B1B; --jp-border-color2: #D5D9DE;
  --jp-widgets-label-color: #1B1B1B; --jp-widgets-readout-color: #1B1B1B; --jp-widgets-color: #1B1B1B;
  --jp-widgets-input-color: #1B1B1B; --jp-widgets-input-background-color: #FFFFFF;
  --jp-widgets-input-border-color: #B0B6BD;
"""

STYLE: Final = f"""<style>
.aq {{ {_LIGHT} color: var(--aq-ink); background: var(--aq-ground); padding: 8px 12px 12px; overflow: hidden;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; font-size: 13px; }}
.aq.aq-dark {{ color-scheme: dark; {_DARK} --jp-widgets-dropdown-arrow: {_ARROW}; }}
.aq .widget-html-content, .aq .jupyter-widget-html-content {{ color: var(--aq-ink); line-height: 1.45;
  font-size: 13px; }}
.aq .widget-html, .aq .jupyter-widget-html {{ margin: 1px 2px; height: auto; }}
.aq h2 {{ font-size: 17px; margin: 0; font-weight: 650; }} .aq h3 {{ font-size: 14px; margin: 0; font-weight: 650; }}
.aq small, .aq .aq-quiet {{ color: var(--aq-quiet); font-size: 12px; }}
.aq label {{ font-size: 13px; }}
.aq-section {{ border-top: 1px solid var(--aq-line); padding: 8px 0 6px; }}
.aq-row {{ gap: 4px 6px; align-items: center; min-height: 32px; flex-wrap: wrap; }}
.aq-message {{ color: var(--aq-ink); }}
.aq-message [role=alert], .aq-error {{ border-left: 4px solid #D55E00; padding: 2px 8px; display: inline-block;
  background: var(--aq-raised); color: var(--aq-ink); }}
/* Jupyter's own rules take outlines away, and mean it: these outweigh them. */
.aq .jupyter-widgets.aq-refused input, .aq .jupyter-widgets.aq-refused textarea,
.aq .jupyter-widgets.aq-refused select {{ outline: 2px solid #D55E00 !important; outline-offset: -2px; }}
.aq-row > .aq-message:has([role=alert]) {{ flex: 1 0 100%; padding-left: min(196px, 20%); box-sizing: border-box; }}
.aq-changed {{ color: var(--aq-quiet); font-size: 12px; padding-left: 6px; }}
.aq-plan {{ background: var(--aq-raised); border: 1px solid var(--aq-line); border-radius: 6px; padding: 8px 12px; }}
.aq-plan .big {{ font-size: 17px; font-weight: 650; }}
.aq-bar {{ display: flex; margin: 6px 0; height: 18px; border-radius: 3px; overflow: hidden; }}
.aq-bar span {{ font-size: 11px; line-height: 18px; padding-left: 5px; overflow: hidden;
  box-sizing: border-box; border-right: 1px solid var(--aq-raised); }}
.aq .widget-button, .aq .jupyter-button {{ background: var(--jp-layout-color2); color: var(--aq-ink);
  border-radius: 4px;
  border: 1px solid var(--jp-border-color2); height: 30px; line-height: 28px; font-size: 13px; width: auto;
  padding: 0 12px; }}
.aq .jupyter-widgets:focus-visible, .aq .jupyter-widgets input:focus-visible, .aq .jupyter-widgets select:focus-visible,
.aq .jupyter-widgets textarea:focus-visible, .aq summary:focus-visible, .aq .noUi-handle:focus-visible {{
  outline: 2px solid var(--aq-focus) !important; outline-offset: -2px; }}
.aq .aq-run:focus-visible, .aq .aq-choices .jupyter-button.mod-active:focus-visible {{
  outline-color: #FFFFFF !important; outline-offset: -5px; }}
.aq .jupyter-button:disabled {{ opacity: .55; }}
.aq .jupyter-button.aq-narrow {{ padding: 0; }}
.aq .aq-run {{ background: #0072B2; color: #FFFFFF; border-color: #0072B2; font-weight: 650; min-width: 84px; }}
.aq .aq-choices .jupyter-button.mod-active {{ background: #0072B2; color: #FFFFFF; border-color: #0072B2;
  box-shadow: none; }}
.aq .aq-fold, .aq .aq-fold .jupyter-widget-Collapse-header, .aq .aq-fold .jupyter-widget-Collapse-contents {{
  background: transparent; color: var(--aq-ink); border-color: var(--aq-line); }}
.aq select, .aq input, .aq textarea {{ color: var(--aq-ink) !important;
  background-color: var(--jp-layout-color1) !important;
  font-size: 13px !important; }}
.aq table {{ border-collapse: collapse; font-size: 12px; color: var(--aq-ink); margin: 4px 0; }}
.aq th, .aq td {{ padding: 2px 10px 2px 0; border-bottom: 1px solid var(--aq-line); vertical-align: top;
  color: var(--aq-ink);
  background: transparent; }}
.aq tr {{ background: transparent !important; }}
.aq .aq-across td:not(:last-child), .aq .aq-across th {{ white-space: nowrap; }}
.aq-facts {{ display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0; }}
.aq-facts > div {{ background: var(--aq-raised); border: 1px solid var(--aq-line); border-radius: 6px;
  padding: 3px 10px 4px; }}
.aq-facts span {{ color: var(--aq-quiet); font-size: 12px; }}
.aq-together {{ flex: 0 0 auto; gap: 6px; }}
.aq caption {{ color: var(--aq-quiet); padding-bottom: 3px; }}
.aq .jupyter-widgets {{ max-width: 100%; }}
.aq .widget-box, .aq .widget-html, .aq .widget-html-content {{ min-width: 0; }}
.aq button, .aq input, .aq select, .aq textarea {{ font-family: inherit; }}
.aq .aq-across, .aq .aq-samples {{ overflow-x: auto; }}
.aq .aq-samples svg text {{ fill: var(--aq-ink); }}
.aq .aq-across svg, .aq .aq-samples svg {{ max-width: 100%; height: auto; }}
.aq progress {{ max-width: 100%; width: 320px; height: 12px; accent-color: #0072B2; vertical-align: middle; }}
.aq pre, .aq code {{ background: var(--aq-raised); color: var(--aq-ink); font-size: 12px; padding: 2px 4px; }}
.aq .aq-card {{ border: 1px solid var(--aq-line); border-radius: 6px; padding: 8px 12px; margin-top: 6px; }}
.aq .aq-scroll {{ max-height: 420px; overflow: auto; }}
.aq u.aq-diff {{ text-decoration-color: #D55E00; text-decoration-thickness: 2px; }}
.aq img {{ max-width: none; }}
</style>"""
