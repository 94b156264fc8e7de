"""The page at `/`: files that a browser runs as they are, without a build step.

`page.js` is the story; each module beside it has one thing to do. They use the API that everyone uses, and know nothing else of the
service.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
