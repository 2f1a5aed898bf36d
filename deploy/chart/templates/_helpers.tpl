{{- define "understudy.image" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}
{{- $registry := required "registry: name the registry with the images that deploy/images builds" $root.Values.registry -}}
{{- index $root.Values.images $part | default (printf "%s/understudy-%s:%s" (trimSuffix "/" $registry) $part ($root.Values.version | default $root.Chart.AppVersion)) -}}
{{- end -}}

{{- define "understudy.chartLabels" -}}
{{- with $.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "understudy.endpoints" -}}
{{- required "etcd.endpoints: name your etcd, or set etcd.trial=true for a trial" (join "," $.Values.etcd.endpoints) -}}
{{- end -}}

{{- /* The namespaces to create, each once, as a JSON list. */ -}}
{{- define "understudy.newNamespaces" -}}
{{- $found := list -}}
{{- if $.Values.createNamespaces -}}
{{- range $.Values.pools }}{{ $found = append $found (.namespace | default .spec.pool) }}{{ end -}}
{{- end -}}
{{- $found | uniq | toJson -}}
{{- end -}}

{{- /* The id of each pool in a certificate, with commas between. */ -}}
{{- define "understudy.ids" -}}
{{- $kind := index . 1 -}}{{- $ids := list -}}
{{- range (index . 0).Values.pools }}{{ $ids = append $ids (printf "spiffe://understudy/%s/%s/${POD_NAME}" .spec.pool $kind) }}{{ end -}}
{{- join "," $ids -}}
{{- end -}}

{{- /* A Job cannot be changed, so its name has a digest of everything that is in it. */ -}}
{{- define "understudy.specName" -}}
{{- $root := index . 0 -}}{{- $pool := index . 1 -}}
{{- $in := list $pool.spec (include "understudy.image" (list $root "control")) $root.Values.etcd $root.Values.commonLabels $root.Values.podAnnotations $root.Values.imagePullSecrets $root.Chart.Version -}}
{{- printf "spec-%s-%s" $pool.spec.pool ($in | toJson | sha256sum | trunc 8) -}}
{{- end -}}

{{- define "understudy.bootstrapName" -}}
{{- printf "front-%s" (list $.Release.Namespace $.Values.clusterDomain $.Values.certificates $.Chart.Version | toJson | sha256sum | trunc 8) -}}
{{- end -}}

{{- /* The ports of front Envoys as a JSON list of {number, protocol}, in ascending order. */ -}}
{{- define "understudy.frontPorts" -}}
{{- $protocols := dict -}}
{{- range $.Values.pools -}}
{{- $protocol := "http" -}}
{{- if eq (default "http" .spec.protocol) "tcp" }}{{ $protocol = "tcp" }}{{ else if .spec.front.tls }}{{ $protocol = "https" }}{{ end -}}
{{- $_ := set $protocols (printf "%05d" (int .spec.front.port)) $protocol -}}
{{- end -}}
{{- $found := list -}}
{{- range keys $protocols | sortAlpha }}{{ $found = append $found (dict "number" (trimPrefix "0" . | trimPrefix "0" | trimPrefix "0" | trimPrefix "0") "protocol" (get $protocols .)) }}{{ end -}}
{{- $found | toJson -}}
{{- end -}}

{{- define "understudy.frontServicePorts" -}}
{{- range include "understudy.frontPorts" $ | fromJsonArray }}
- name: {{ .protocol }}-{{ .number }}
  port: {{ .number }}
  targetPort: {{ .protocol }}-{{ .number }}
  protocol: TCP
{{- if ne .protocol "tcp" }}
  appProtocol: {{ .protocol }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The session key of a TCP pool is the client's address, so nodes must not replace it by theirs. */ -}}
{{- define "understudy.frontTrafficPolicy" -}}
{{- if and (ne $.Values.front.service.type "ClusterIP") (contains "\"tcp\"" (include "understudy.frontPorts" $)) -}}
externalTrafficPolicy: Local
{{- end -}}
{{- end -}}

{{- define "understudy.frontContainerPorts" -}}
{{- range include "understudy.frontPorts" $ | fromJsonArray }}
- name: {{ .protocol }}-{{ .number }}
  containerPort: {{ .number }}
  protocol: TCP
{{- end }}
{{- end -}}

{{- define "understudy.frontPolicyPorts" -}}
{{- range include "understudy.frontPorts" $ | fromJsonArray }}
- protocol: TCP
  port: {{ .number }}
{{- end }}
{{- end -}}

{{- /* Envoy is not root, so for ports below 1024 its pod needs a setting of the kernel. */ -}}
{{- define "understudy.frontSysctls" -}}
{{- $low := false -}}
{{- range $.Values.pools }}{{ if lt (int .spec.front.port) 1024 }}{{ $low = true }}{{ end }}{{ end -}}
{{- if $low -}}
sysctls:
  - name: net.ipv4.ip_unprivileged_port_start
    value: "0"
{{- end -}}
{{- end -}}

{{- define "understudy.frontTlsVolumes" -}}
{{- range $.Values.front.tlsSecrets }}
- name: tls-{{ . }}
  secret:
    secretName: {{ . }}
    defaultMode: 288
{{- end }}
{{- end -}}

{{- define "understudy.frontTlsMounts" -}}
{{- range $.Values.front.tlsSecrets }}
- name: tls-{{ . }}
  mountPath: /etc/understudy-front/{{ . }}
  readOnly: true
{{- end }}
{{- end -}}

{{- /* To etcd: to its addresses, else to its namespace, else to its port anywhere. */ -}}
{{- define "understudy.etcdEgress" -}}
{{- if $.Values.etcd.trial -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ $.Release.Namespace }}
      podSelector:
        matchLabels:
          app.kubernetes.io/name: understudy
          app.kubernetes.io/component: etcd
  ports:
    - protocol: TCP
      port: 2379
{{- else -}}
{{- include "understudy.ownEgress" $.Values.etcd.endpoints -}}
{{- end -}}
{{- end -}}

{{- /* To the endpoints of an etcd of your own. */ -}}
{{- define "understudy.ownEgress" -}}
{{- $rules := list -}}
{{- range . -}}
{{- $bare := regexReplaceAll "^https?://" . "" -}}
{{- $port := regexFind ":[0-9]+$" $bare | trimPrefix ":" | default "2379" | int -}}
{{- $host := regexReplaceAll ":[0-9]+$" $bare "" | trimPrefix "[" | trimSuffix "]" -}}
{{- $rule := dict "ports" (list (dict "protocol" "TCP" "port" $port)) -}}
{{- $parts := splitList "." $host -}}
{{- if regexMatch "^[0-9]+([.][0-9]+){3}$" $host -}}
{{- $_ := set $rule "to" (list (dict "ipBlock" (dict "cidr" (printf "%s/32" $host)))) -}}
{{- else if contains ":" $host -}}
{{- $_ := set $rule "to" (list (dict "ipBlock" (dict "cidr" (printf "%s/128" $host)))) -}}
{{- else if and (gt (len $parts) 2) (eq (index $parts 2) "svc") -}}
{{- $_ := set $rule "to" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" (index $parts 1))))) -}}
{{- else if and (gt (len $parts) 3) (eq (index $parts 3) "svc") -}}
{{- $_ := set $rule "to" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" (index $parts 2))))) -}}
{{- end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- $rules | uniq | toYaml -}}
{{- end -}}

{{- /* The file for --peer of understudy mirror. */ -}}
{{- define "understudy.peerFile" -}}
{{- $addresses := list -}}
{{- range $.Values.mirror.peerEndpoints -}}
{{- $bare := regexReplaceAll "^https?://" . "" | trimSuffix "/" -}}
{{- $addresses = append $addresses (regexMatch ":[0-9]+$" $bare | ternary $bare (printf "%s:2379" $bare)) -}}
{{- end -}}
endpoints: [{{ join ", " $addresses }}]
{{- if $.Values.mirror.peerTlsSecret }}
ca: /etc/understudy-peer-tls/ca.crt
cert: /etc/understudy-peer-tls/tls.crt
key: /etc/understudy-peer-tls/tls.key
{{- end }}
{{ end -}}

{{- define "understudy.prometheus" -}}
{{- $.Values.autoscaling.prometheus | default (printf "http://prometheus-operated.%s.svc:9090" $.Values.monitoring.namespace) -}}
{{- end -}}

{{- define "understudy.rules" -}}
{{- $.Files.Get "files/rules.yaml" | replace "runbook_url: docs/operations.md#" (printf "runbook_url: %s#" $.Values.monitoring.runbookBase) -}}
{{- end -}}
