{{/* What the schema cannot say: the values that a member needs together. */}}

{{- define "triskele.requirements" -}}
{{- $f := .Values.federation -}}
{{- if and (eq .Values.role "party") (kindIs "invalid" .Values.party.index) -}}
{{- fail "party.index: give 0, 1 or 2" -}}
{{- end -}}
{{- range $i := list "0" "1" "2" -}}
{{- $party := index $f.parties $i -}}
{{- if not $party.address -}}{{- fail (printf "federation.parties.%s.address: give host:port" $i) -}}{{- end -}}
{{- if not $party.peerAddress -}}{{- fail (printf "federation.parties.%s.peerAddress: give host:port" $i) -}}{{- end -}}
{{- end -}}
{{- if not $f.coordinator.address -}}{{- fail "federation.coordinator.address: give host:port" -}}{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRef.name) -}}
{{- fail "gateway.parentRef.name: name the Gateway" -}}
{{- end -}}
{{- if and .Values.tracing.endpoint .Values.networkPolicy.enabled (not .Values.tracing.collector) -}}
{{- fail "tracing.collector: say whom the network policy lets it be, or set networkPolicy.enabled to false" -}}
{{- end -}}
{{- if and .Values.coordinator.tasks .Values.coordinator.tasksConfigMap -}}
{{- fail "coordinator.tasks and coordinator.tasksConfigMap: give one of them" -}}
{{- end -}}
{{- end -}}

{{/* NetworkPolicyPeers of a member: (dict "where" "federation.parties.1" "member" ... "component" "party-1"). */}}
{{- define "triskele.networkPeers" -}}
{{- if not (or .member.networks .member.namespace) -}}
{{- fail (printf "%s: give `networks` or `namespace`, or set networkPolicy.enabled to false" .where) -}}
{{- end -}}
{{- range .member.networks }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- if .member.namespace }}
- namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .member.namespace }}}}
  {{- if .component }}
  podSelector: {matchLabels: {app.kubernetes.io/name: triskele, app.kubernetes.io/component: {{ .component }}}}
  {{- end }}
{{- end }}
{{- end -}}
