# The cluster in containers. Included by the Makefile at the root; every path is relative to it.
#
# Nothing here touches what is not ours: containers, volumes and the network by the compose project, images
# by their three names.

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) -p hercules
DOCKER_BUILD ?= docker build
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGES := hercules-master hercules-chunkserver hercules-gateway

.PHONY: build-all build-master build-chunk build-gateway up down restart stop start ps status logs logs-follow health clean

build-all: build-master build-chunk build-gateway ## build the images of all roles

build-master: ## build the image hercules-master
	$(call build,master_server,hercules-master)

build-chunk: ## build the image hercules-chunkserver
	$(call build,chunk_server,hercules-chunkserver)

build-gateway: ## build the image hercules-gateway
	$(call build,gateway_server,hercules-gateway)

define build
$(DOCKER_BUILD) -f docker/Dockerfile --build-arg SERVER_TYPE=$(1) --build-arg VERSION=$(VERSION) -t $(2):latest -t $(2):$(VERSION) .
endef

up: ## start the cluster, building images that are absent, and wait until all of it is healthy
	@for image in $(IMAGES); do docker image inspect $$image:latest >/dev/null 2>&1 || missing=1; done; \
	  test -z "$$missing" || $(MAKE) --no-print-directory build-all
	$(COMPOSE) up -d --no-build
	@docker/cluster.sh wait

down: ## stop the cluster and remove its containers; data stays in the volumes
	$(COMPOSE) down

restart: ## restart every service and wait until all of it is healthy
	$(COMPOSE) restart
	@docker/cluster.sh wait

stop: ## stop the containers
	$(COMPOSE) stop

start: ## start stopped containers and wait until all of it is healthy
	$(COMPOSE) start
	@docker/cluster.sh wait

ps: ## list the containers
	$(COMPOSE) ps

status: ps ## list containers and images
	@docker image ls --filter 'reference=hercules-*'

logs: ## the last 100 lines of every service
	$(COMPOSE) logs --tail=100

logs-follow: ## follow the logs of every service
	$(COMPOSE) logs --tail=100 --follow

health: ## state of every container, and whether its service answers, with the time it took
	@docker/cluster.sh health

clean: ## remove containers, VOLUMES WITH ALL DATA, network and images of the cluster
	$(COMPOSE) down --volumes --remove-orphans
	@for image in $(IMAGES); do for tag in latest $(VERSION); do \
	  ! docker image inspect $$image:$$tag >/dev/null 2>&1 || docker image rm $$image:$$tag; done; done
	docker image prune --force --filter label=org.hercules.stage=build
