{{/* party.toml and coordinator.toml. JSON's strings, numbers and lists of them are TOML's too. */}}

{{- define "triskele.config" -}}
{{- if eq .Values.role "party" }}{{ include "triskele.partyConfig" . }}{{ else }}{{ include "triskele.coordinatorConfig" . }}{{ end -}}
{{- end -}}

{{- define "triskele.processConfig" -}}
[tls]
authority = "/etc/triskele/tls/ca.crt"
certificate = "/etc/triskele/tls/tls.crt"
key = "/etc/triskele/tls/tls.key"
denied = "/etc/triskele/deny-list/denied.txt"

[probes]
host = "0.0.0.0"
health_port = {{ int .Values.ports.health }}
metrics_port = {{ int .Values.ports.metrics }}
{{- with .Values.limits }}

[limits]
{{- range $key, $value := . }}
{{ $key }} = {{ if eq (float64 $value) (floor $value) }}{{ int64 $value }}{{ else }}{{ toJson $value }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "triskele.partyConfig" -}}
{{- $own := int .Values.party.index -}}
federation = {{ toJson .Values.federation.name }}
index = {{ $own }}
coordinator = {{ toJson .Values.coordinator.name }}
listen = "0.0.0.0:{{ int .Values.ports.listen }}"
peer_listen = "0.0.0.0:{{ int .Values.ports.peer }}"
data = "/var/lib/triskele"
signing_key = "/etc/triskele/signing/signing.key"
relay_to = {{ toJson (index .Values.federation.parties (toString (mod (add $own 2) 3))).address }}
{{- if .Values.party.sealingSecret }}
sealing_key = "/etc/triskele/sealing/sealing.key"
{{- end }}

[peers]
{{- range $i, $party := .Values.federation.parties }}
{{- if ne (int $i) $own }}
{{ $i }} = {{ toJson $party.peerAddress }}
{{- end }}
{{- end }}

{{ include "triskele.processConfig" . }}
{{- with .Values.party.policy }}

[policy]
{{- range $key, $value := omit . "rule_sources" }}
{{ $key }} = {{ if and (kindIs "float64" $value) (eq $value (floor $value)) }}{{ int64 $value }}{{ else }}{{ toJson $value }}{{ end }}
{{- end }}
{{- with .rule_sources }}

[policy.rule_sources]
{{- range $rule, $digest := . }}
{{ toJson $rule }} = {{ toJson $digest }}
{{- end }}
{{- end }}
{{- end }}
{{ end -}}

{{- define "triskele.coordinatorConfig" -}}
federation = {{ toJson .Values.federation.name }}
name = {{ toJson .Values.coordinator.name }}
listen = "0.0.0.0:{{ int .Values.ports.listen }}"
data = "/var/lib/triskele"
tasks = "/etc/triskele/tasks"
{{- with .Values.coordinator.database.url }}
database_url = {{ toJson . }}
{{- end }}

[parties]
{{- range $i, $party := .Values.federation.parties }}
{{ $i }} = {{ toJson $party.address }}
{{- end }}
{{- with .Values.coordinator.advertised }}

[advertised]
{{- range $i, $address := . }}
{{ $i }} = {{ toJson $address }}
{{- end }}
{{- end }}

{{ include "triskele.processConfig" . }}
{{ end -}}
