// Runs the cases of cyclonus with its workers: one `exec` a pod and probe instead of one a connection, which its own command
// leaves out. What is probed, and what must come of it, is cyclonus' own.
package main

import (
	"flag"
	"fmt"
	"log"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	v1 "k8s.io/api/core/v1"
)

// What a pod says to itself is not judged: no policy can forbid it, which cyclonus' expectation does not know.
// https://kubernetes.io/docs/concepts/services-networking/network-policies/
const itself = true

func main() {
	report := flag.String("junit", "", "file that the results are written to, after each case")
	tags := flag.String("include", "", "tags of the cases to run, separated by commas; all of them when empty")
	settle := flag.Int("settle", 1, "seconds between a change and the probe")
	flag.Parse()
	var include []string
	if *tags != "" {
		include = strings.Split(*tags, ",")
	}
	if err := generator.ValidateTags(include); err != nil {
		log.Fatal(err)
	}

	cluster, err := kube.NewKubernetesForContext("")
	if err != nil {
		log.Fatal(err)
	}
	namespaces, protocols := []string{"x", "y", "z"}, []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP}
	if socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, syscall.IPPROTO_SCTP); err == nil {
		syscall.Close(socket)
		protocols = append(protocols, v1.ProtocolSCTP)
	} else {
		fmt.Printf("SCTP is not probed, this kernel has none: %v\n", err)
	}
	resources, err := probe.NewDefaultResources(cluster, namespaces, []string{"a", "b", "c"}, []int{80, 81}, protocols, nil, 300, true, "")
	if err != nil {
		log.Fatal(err)
	}
	for _, namespace := range namespaces {
		awaitReady(cluster, namespace)
	}
	peer, err := resources.GetPod("z", "c")
	if err != nil {
		log.Fatal(err)
	}
	cases := generator.NewTestCaseGenerator(true, peer.IP, namespaces, include, nil).GenerateTestCases()
	interpreter := connectivity.NewInterpreter(cluster, resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase:       true,
		VerifyClusterStateBeforeTestCase: true,
		KubeProbeRetries:                 0,
		PerturbationWaitSeconds:          *settle,
		BatchJobs:                        true,
		IgnoreLoopback:                   itself,
		JobTimeoutSeconds:                1,
	})
	printer := &connectivity.Printer{JunitResultsFile: *report, IgnoreLoopback: itself}
	failed := 0
	for number, one := range cases {
		result := interpreter.ExecuteTestCase(one)
		if result.Err != nil {
			log.Fatalf("case %d of %d, %s: %v", number+1, len(cases), one.Description, result.Err)
		}
		if !result.Passed(itself) {
			failed++
		}
		printer.PrintTestCaseResult(result)
		if err := connectivity.PrintJUnitResults(*report, printer.Results, itself); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("case %d of %d, %d failed so far: %s\n", number+1, len(cases), failed, one.Description)
	}
	printer.PrintSummary()
}

// Until the kubelets have told all that they tell of new pods: a case that changes a pod beside that would fail.
func awaitReady(cluster *kube.Kubernetes, namespace string) {
	for ready := false; !ready; time.Sleep(time.Second) {
		pods, err := cluster.GetPodsInNamespace(namespace)
		if err != nil {
			log.Fatal(err)
		}
		ready = true
		for _, pod := range pods {
			ready = ready && slices.ContainsFunc(pod.Status.Conditions, func(condition v1.PodCondition) bool {
				return condition.Type == v1.PodReady && condition.Status == v1.ConditionTrue
			})
		}
	}
}
