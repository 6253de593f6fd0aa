{{/* The pod of a member; StatefulSet and Deployment differ in the volume only. */}}

{{- define "triskele.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "triskele.podSecurityContext" -}}
runAsNonRoot: true
{{- range $key, $value := .Values.user }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }}: {{ int64 $value }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "triskele.pod" -}}
{{- $own := index .Values .Values.role -}}
metadata:
  labels:
    {{- include "triskele.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    triskele/config: {{ include "triskele.config" . | sha256sum }}
    {{- if eq .Values.role "coordinator" }}
    triskele/tasks: {{ .Values.coordinator.tasks | toJson | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "triskele.fullname" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "triskele.podSecurityContext" . | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: triskele
      image: {{ include "triskele.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [{{ .Values.role }}, --config, /etc/triskele/config/{{ .Values.role }}.toml]
      securityContext:
        {{- include "triskele.securityContext" . | nindent 8 }}
      {{- $variable := eq .Values.role "party" | ternary "TRISKELE_PARTY_STORE_KEY" "PGPASSWORD" }}
      {{- $secret := eq .Values.role "party" | ternary .Values.party.storeKeySecret .Values.coordinator.database.passwordSecret }}
      {{- if or $secret.name .Values.tracing.endpoint }}
      env:
        {{- with $secret }}
        {{- if .name }}
        - name: {{ $variable }}
          valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
        {{- end }}
        {{- end }}
        {{- with .Values.tracing.endpoint }}
        - {name: TRISKELE_TRACES, value: otlp}
        - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
      {{- end }}
      ports:
        - {name: grpc, containerPort: {{ int .Values.ports.listen }}}
        {{- if eq .Values.role "party" }}
        - {name: grpc-peers, containerPort: {{ int .Values.ports.peer }}}
        {{- end }}
        - {name: grpc-health, containerPort: {{ int .Values.ports.health }}}
        - {name: metrics, containerPort: {{ int .Values.ports.metrics }}}
      startupProbe:  # a party imports torch before it serves
        grpc: {port: {{ int .Values.ports.health }}}
        periodSeconds: 3
        failureThreshold: 60
      readinessProbe:
        grpc: {port: {{ int .Values.ports.health }}}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      livenessProbe:
        grpc: {port: {{ int .Values.ports.health }}}
        periodSeconds: 20
        timeoutSeconds: 5
        failureThreshold: 6
      resources:
        {{- toYaml $own.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/triskele/config, readOnly: true}
        - {name: deny-list, mountPath: /etc/triskele/deny-list, readOnly: true}
        - {name: tls, mountPath: /etc/triskele/tls, readOnly: true}
        {{- if eq .Values.role "coordinator" }}
        - {name: tasks, mountPath: /etc/triskele/tasks, readOnly: true}
        {{- else }}
        - {name: signing, mountPath: /etc/triskele/signing, readOnly: true}
        {{- if .Values.party.sealingSecret }}
        - {name: sealing, mountPath: /etc/triskele/sealing, readOnly: true}
        {{- end }}
        {{- end }}
        - {name: data, mountPath: /var/lib/triskele}
        - {name: temporary, mountPath: /tmp}
  volumes:
    - name: config
      configMap: {name: {{ include "triskele.fullname" . }}, defaultMode: 0444}
    - name: deny-list
      configMap: {name: {{ include "triskele.fullname" . }}-deny-list, defaultMode: 0444}
    - name: tls
      projected:
        defaultMode: 0440
        sources:
          - secret:
              name: {{ include "triskele.tlsSecret" . }}
              items:
                - {key: tls.crt, path: tls.crt}
                - {key: tls.key, path: tls.key}
                {{- if not .Values.tls.authorityConfigMap }}
                - {key: ca.crt, path: ca.crt}
                {{- end }}
          {{- with .Values.tls.authorityConfigMap }}
          - configMap:
              name: {{ . }}
              items: [{key: ca.crt, path: ca.crt}]
          {{- end }}
    {{- if eq .Values.role "coordinator" }}
    - name: tasks
      configMap:
        name: {{ .Values.coordinator.tasksConfigMap | default (printf "%s-tasks" (include "triskele.fullname" .)) }}
        defaultMode: 0444
    - name: data
      persistentVolumeClaim: {claimName: {{ include "triskele.fullname" . }}-data}
    {{- else }}
    - name: signing
      secret:
        secretName: {{ include "triskele.signingSecret" . }}
        defaultMode: 0440
        items: [{key: signing.key, path: signing.key}]
    {{- if .Values.party.sealingSecret }}
    - name: sealing
      secret:
        secretName: {{ .Values.party.sealingSecret }}
        defaultMode: 0440
        items: [{key: sealing.key, path: sealing.key}]
    {{- end }}
    {{- end }}
    - name: temporary
      emptyDir: {sizeLimit: {{ .Values.temporarySize }}}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with index $.Values $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {app.kubernetes.io/name: triskele}}
    {{- end }}
    {{- end }}
{{- end -}}

{{/* The spec of a PersistentVolumeClaim. */}}
{{- define "triskele.claim" -}}
accessModes: {{ toJson .accessModes }}
{{- with .storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end -}}
