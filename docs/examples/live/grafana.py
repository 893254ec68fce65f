import json
from urllib.parse import quote

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())

TEMPO = "tempo"  # the UID of the data source in Grafana
pane = {
    "datasource": TEMPO,
    "queries": [
        {
            "refId": "A",
            "datasource": {"type": "tempo", "uid": TEMPO},
            "queryType": "traceql",
            "query": "{trace_id}",
        }
    ],
    "range": {"from": "now-1h", "to": "now"},
}
panes = quote(json.dumps({"live": pane}), safe="{}")

app = FastAPI()
page = TasksPage(
    trace_url="http://localhost:3000/explore"
    f"?schemaVersion=1&orgId=1&panes={panes}"
)
app.mount("/tasks", page)
