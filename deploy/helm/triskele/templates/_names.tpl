{{/* Names, labels and identities. */}}

{{- define "triskele.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* "party-0" or "coordinator": what the member is, as a label. */}}
{{- define "triskele.component" -}}
{{- if eq .Values.role "party" }}party-{{ int .Values.party.index }}{{ else }}coordinator{{ end -}}
{{- end -}}

{{/* "0" or "main": the name in the member's identity. */}}
{{- define "triskele.memberName" -}}
{{- if eq .Values.role "party" }}{{ int .Values.party.index }}{{ else }}{{ .Values.coordinator.name }}{{ end -}}
{{- end -}}

{{- define "triskele.spiffeId" -}}
spiffe://{{ .Values.federation.name }}/{{ .Values.role }}/{{ include "triskele.memberName" . }}
{{- end -}}

{{/* The name that clients ask for and verify, whatever address they dial. */}}
{{- define "triskele.tlsName" -}}
{{ .Values.role }}-{{ include "triskele.memberName" . }}.{{ .Values.federation.name }}.triskele
{{- end -}}

{{- define "triskele.selectorLabels" -}}
app.kubernetes.io/name: triskele
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ include "triskele.component" . }}
{{- end -}}

{{- define "triskele.labels" -}}
{{ include "triskele.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .Values.federation.name | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "triskele.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "triskele.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" (include "triskele.fullname" .)) }}
{{- end -}}

{{- define "triskele.signingSecret" -}}
{{ .Values.party.signingSecret | default (printf "%s-signing" (include "triskele.fullname" .)) }}
{{- end -}}

{{- define "triskele.port" -}}
{{ . | splitList ":" | last | int }}
{{- end -}}
