"""What uvicorn serves: MONAI Label's own web application behind our front door, with our routes.

``monailabel start_server --app … --studies … --uvicorn_app lorkd_monailabel.asgi:app``
"""

from lorkd_monailabel.compat import allow_pydicom_3

allow_pydicom_3()

from lorkd_monailabel.front_door.door import build  # noqa: E402
from lorkd_monailabel.routes import PREFIX, routers  # noqa: E402

app = build(routers(), prefix=PREFIX)
