#!/usr/bin/env bash
# Ascend's environment, for whoever sources this; nothing where CANN is not installed. What is set already stays.

_source_cann() {
    local home file options
    for home in "${ASCEND_TOOLKIT_HOME:-}" "${ASCEND_TOOLKIT_HOME:+$ASCEND_TOOLKIT_HOME/..}" \
        /usr/local/Ascend/ascend-toolkit /usr/local/Ascend/cann /usr/local/Ascend/nnae; do
        file=$home/set_env.sh
        if [[ -n $home && -r $file ]]; then
            options=$-
            set +eu # CANN's script reads variables that nobody has set
            # shellcheck disable=SC1090
            source "$file"
            [[ $options != *e* ]] || set -e
            [[ $options != *u* ]] || set -u
            return 0
        fi
    done
    [[ -n ${ASCEND_TOOLKIT_HOME:-} ]] # a container that has it in its environment
}

if _source_cann; then
    export TASK_QUEUE_ENABLE="${TASK_QUEUE_ENABLE:-2}"               # operators are issued by a second thread
    export COMBINED_ENABLE="${COMBINED_ENABLE:-1}"                   # joins operators on tensors that are not contiguous
    export HCCL_WHITELIST_DISABLE="${HCCL_WHITELIST_DISABLE:-1}"     # cards talk without a list of who may
    export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"   # errors only
fi
unset -f _source_cann
