# `make up` deploys the platform on a cluster of its own, `make test` proves the project. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CACHE := $(or $(CITADELBUY_CACHE),$(HOME)/.cache/citadelbuy)
# Shared by all checkouts with the same requirements.
VENV := $(CACHE)/venv-$(shell { cat requirements.txt; $(PYTHON) -V; } 2>&1 | sha256sum | cut -c1-12)
STAMP := $(VENV)/.complete
INVENTORY ?= inventories/local
# More arguments for ansible-playbook: make up ARGS="-e local_cluster_nodes=3"
ARGS ?=

export CITADELBUY_CACHE := $(CACHE)
export PATH := $(VENV)/bin:$(PATH)

.PHONY: help
help: ## This list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: up
up: $(STAMP) ## The platform on a cluster of its own, verified; from any state
	@ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i $(INVENTORY) $(ARGS)

.PHONY: down
down: $(STAMP) ## That cluster and its data gone
	@ansible-playbook playbooks/local_cluster_down.yml -i $(INVENTORY) $(ARGS)

.PHONY: test
test: $(STAMP) ## Everything below
	@python tests/run.py lint unit render graders rules firewall viewer molecule disaster ha cluster

.PHONY: lint unit render graders rules firewall viewer molecule disaster ha cluster
lint: $(STAMP) ## ruff, yamllint, ansible-lint (profile production)
unit: $(STAMP) ## The engine against a real API server, preflight, images
render: $(STAMP) ## Every inventory rendered, checked by schema and by dry run
graders: $(STAMP) ## kube-score and checkov over the manifests of inventories/prod
rules: $(STAMP) ## promtool: every alert fires when it should, and only then; every alert has a runbook
firewall: $(STAMP) ## The firewall by its real programs: the core rule set's own attacks refused, 1,000 requests of customers let through
viewer: $(STAMP) ## The viewer that stands for Grafana here: by node, and in Chromium on a real Prometheus
molecule: $(STAMP) ## Deploy, deploy again, verify, remove: on a cluster of its own
disaster: $(STAMP) ## Every store written to, the cluster destroyed, all of it found in a new one
ha: $(STAMP) ## The datastores with three members; the one that leads is lost under writes, and none of them with it
cluster: $(STAMP) ## The embedded cluster brought up with three nodes, from nothing and from every leftover state
lint unit render graders rules firewall viewer molecule disaster ha cluster:
	@python tests/run.py $@

.PHONY: drill-rotation
drill-rotation: $(STAMP) ## Every secret rotated under load and killed at every step, on a cluster of its own
	@variables='-e local_cluster_name=rotate -e local_cluster_api_port=17443'
	ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i inventories/local $$variables \
	    -e configuration_rate_limit_public_max=1000000 -e configuration_rate_limit_max_requests=1000000 \
	    -e configuration_rate_limit_search_max=1000000
	CITADELBUY_ROTATION_CLUSTER=rotate pytest -s tests/rotation
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-sealed-secrets
drill-sealed-secrets: $(STAMP) ## The Secret handed to Sealed Secrets and back, with their real controller, on a cluster of its own
	@variables='-e local_cluster_name=sealed -e local_cluster_api_port=17444'
	ansible-playbook playbooks/local_cluster.yml tests/sealed_secrets/nodes.yml playbooks/site.yml -i inventories/local $$variables
	CITADELBUY_SEALED_CLUSTER=sealed pytest -s tests/sealed_secrets
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-alerts
drill-alerts: $(STAMP) ## Faults that must bring the right alert to a webhook in time, and no others, on a cluster of its own
	@variables='-e local_cluster_name=alerts -e local_cluster_api_port=17446'
	ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i inventories/local $$variables
	CITADELBUY_ALERTS_CLUSTER=alerts pytest -s tests/alerts
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-backup
drill-backup: $(STAMP) ## Backups restored to points in time, exactly; without their place, damaged: on a cluster of its own
	@variables='-e local_cluster_name=backup -e local_cluster_api_port=17448 -e platform_backups=true'
	ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i inventories/local $$variables
	CITADELBUY_BACKUP_CLUSTER=backup pytest -s tests/backup
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-upgrade
drill-upgrade: $(STAMP) ## PostgreSQL 15 to 17 and back with three members, rehearsed and compared, on a cluster of its own
	@variables='-e local_cluster_name=upgrade -e local_cluster_api_port=17451 -e platform_backups=true -e postgres_replicas=3'
	# Both images in the nodes.
	ansible-playbook playbooks/local_cluster.yml -i inventories/local $$variables -e postgres_image=citadelbuy.local/postgres-17:17-1
	ansible-playbook playbooks/site.yml -i inventories/local $$variables
	CITADELBUY_BACKUP_CLUSTER=upgrade pytest -s tests/upgrade
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-datastores
drill-datastores: $(STAMP) ## Members, processes, nodes and networks of the datastores lost under writes, ten times each, on a cluster with prod's sizing
	@variables='-e @inventories/prod/group_vars/clusters/sizing.yml -e local_cluster_name=rehearsal -e local_cluster_nodes=5 -e local_cluster_api_port=17449'
	ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i inventories/local $$variables
	ansible-playbook playbooks/drill.yml -i inventories/local $$variables -e drill_stores=all -e drill_scenarios=all \
		-e drill_rounds=10 -e drill_confirm=true -e drill_report_file=.cache/drill.json
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-disk
drill-disk: $(STAMP) ## The leader's volume of each datastore filled to its alert under writes, on a cluster of its own whose volumes have their size
	@variables='-e local_cluster_name=disk -e local_cluster_api_port=17450 -e local_cluster_nodes=2 -e local_cluster_volumes_limited=true'
	variables+=' -e postgres_replicas=3 -e redis_replicas=3 -e elasticsearch_replicas=3'
	variables+=' -e postgres_storage_size=4Gi -e redis_storage_size=4Gi -e elasticsearch_storage_size=4Gi'
	variables+=' -e alerts_volume_warning_ratio=0.85 -e alerts_volume_critical_ratio=0.95'
	variables+=' -e alerts_elasticsearch_disk_warning_ratio=0.8 -e alerts_elasticsearch_disk_critical_ratio=0.9'
	ansible-playbook playbooks/local_cluster.yml playbooks/preflight.yml playbooks/foundation.yml playbooks/datastores.yml \
	    playbooks/monitoring.yml -i inventories/local $$variables
	ansible-playbook playbooks/drill.yml -i inventories/local $$variables -e drill_stores=all -e drill_scenarios=disk-filled \
	    -e drill_confirm=true -e drill_report_file=.cache/drill_disk.json
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-traffic
drill-traffic: $(STAMP) ## Customers' requests by HTTPS through ingress and firewall: none lost over rollouts; limits, attacks, autoscalers, a browser
	@variables='-e @tests/traffic/variables.yml'
	ansible-playbook playbooks/local_cluster.yml playbooks/site.yml -i inventories/local $$variables
	python tests/viewer/programs.py # Chromium
	CITADELBUY_TRAFFIC_CLUSTER=traffic pytest -s tests/traffic
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: drill-network
drill-network: $(STAMP) ## The truth table of the network and 100 new pods, none open for a moment, on the cluster of `make up`
	@CITADELBUY_CLUSTER=citadelbuy CITADELBUY_CHURN=100 pytest -s molecule/default/tests/test_network.py

.PHONY: drill-policies
drill-policies: $(STAMP) ## cyclonus' cases of NetworkPolicy, by real packets, on a cluster of its own with two nodes
	@variables='-e local_cluster_name=cyclonus -e local_cluster_api_port=16744 -e local_cluster_nodes=2'
	# What a run that was ended has left would change what is tested.
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables
	ansible-playbook playbooks/local_cluster.yml tests/cyclonus/nodes.yml -i inventories/local $$variables
	python tests/cyclonus/run.py cyclonus
	ansible-playbook playbooks/local_cluster_down.yml -i inventories/local $$variables

.PHONY: sbom
sbom: $(STAMP) ## What the images built here are made of: a CycloneDX file beside each archive
	@python roles/local_images/files/sbom.py --newest images "$(CACHE)/images"

.PHONY: audit
audit: $(STAMP) ## Known vulnerabilities of all that is pinned, as far as their data bases are reachable
	@python tests/tools/audit.py

.PHONY: bench
bench: $(STAMP) ## Measured against kubectl, Helm and kubernetes.core, on the cluster of `make up`; ARGS names benchmarks
	@python tests/benchmarks/run.py $(ARGS)

.PHONY: venv
venv: $(STAMP) ## The Python environment, as .venv
	@# A real .venv of somebody's own is left alone.
	if [[ -L .venv || ! -e .venv ]]; then ln -sfn "$(VENV)" .venv; fi

$(STAMP):
	@mkdir -p "$(CACHE)"
	exec 9>"$(VENV).lock"
	flock 9
	if [[ ! -e "$@" ]]; then
	    "$(PYTHON)" -c 'import ensurepip' 2>/dev/null || {
	        echo "Installing python3-venv"
	        apt-get -qq update && apt-get -qq install --yes --no-install-recommends python3 python3-venv >/dev/null \
	            || { echo "Python's venv is missing: install Debian's python3-venv as root" >&2; exit 1; }
	    }
	    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	        || { echo "$$("$(PYTHON)" -V) is too old: 3.11 or newer is needed, name it with PYTHON=..." >&2; exit 1; }
	    echo "Making the Python environment $(VENV) (a minute, once)"
	    "$(PYTHON)" -m venv --clear "$(VENV)"
	    "$(VENV)/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	    touch "$@"
	fi
