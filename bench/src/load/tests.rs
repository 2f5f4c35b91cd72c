use super::*;

const WRK: &str = "Running 2s test @ http://127.0.0.1:18081/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   222.95us  144.98us   4.37ms   98.17%
    Req/Sec   102.03k    16.82k  127.09k    76.19%
  Latency Distribution
     50%  210.00us
     75%  250.00us
     90%  276.00us
     99%    1.98ms
  212999 requests in 2.10s, 37.17MB read
Requests/sec: 101395.07
Transfer/sec:     17.70MB
";

const H2LOAD: &str = "finished in 2.00s, 74912.50 req/s, 7.29MB/s
requests: 149825 total, 149857 started, 149825 done, 149825 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 149826 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 14.57MB (15282257) total, 7.00MB (7341474) headers (space savings 50.51%), 5.00MB (5243875) data
";

#[test]
fn wrk_percentiles() {
    let latency = parse_wrk(WRK).unwrap();
    assert_eq!(latency, Latency { p50: Duration::from_micros(210), p99: Duration::from_micros(1980) });
}

#[test]
fn wrk_times_have_units() {
    assert_eq!(parse_wrk_time("1.02s"), Some(Duration::from_millis(1020)));
    assert_eq!(parse_wrk_time("1.50m"), Some(Duration::from_secs(90)));
    assert_eq!(parse_wrk_time("17"), None);
    assert_eq!(parse_wrk_time("-nanus"), None);
}

#[test]
fn wrk_errors_fail_the_round() {
    let socket = WRK.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec");
    assert!(parse_wrk(&socket).unwrap_err().to_string().contains("read 3"));
    let status = WRK.replace("Requests/sec", "  Non-2xx or 3xx responses: 12\nRequests/sec");
    assert!(parse_wrk(&status).unwrap_err().to_string().contains("12"));
    let none = WRK.replace("212999 requests", "0 requests");
    assert!(parse_wrk(&none).unwrap_err().to_string().contains("no request"));
    parse_wrk("unable to connect to 127.0.0.1:1 Connection refused").unwrap_err();
}

#[test]
fn h2load_success_and_failure() {
    check_h2load(H2LOAD).unwrap();
    for (good, bad) in [
        ("0 failed", "1 failed"),
        ("0 errored", "7 errored"),
        ("0 timeout", "2 timeout"),
        ("0 5xx", "3 5xx"),
        ("0 4xx", "3 4xx"),
        ("149825 succeeded", "0 succeeded"),
        ("status codes:", "stati:"),
        ("requests:", "demands:"),
        ("149825 succeeded, ", ""),
    ] {
        let text = H2LOAD.replace(good, bad);
        assert!(check_h2load(&text).is_err(), "{bad:?} passed");
    }
    check_h2load(&H2LOAD.replace("0 failed, ", "")).unwrap_err();
}

#[test]
fn h2load_log_leaves_out_what_began_before_the_window() {
    let text = "1000\t200\t500\n2000\t200\t40\n2001\t204\t60\n";
    assert_eq!(parse_h2load_log(text, 2000..3000).unwrap(), [40, 60]);
    assert!(parse_h2load_log("1000\t-1\t500\n", 2000..3000).is_err(), "a failed stream before the window counts too");
    assert!(parse_h2load_log("1000\t200\n", 0..1).is_err());
    assert!(parse_h2load_log("x\t200\t1\n", 0..1).is_err());
}

/// h2load 1.52 itself reports success when the server dies in the middle of a timed run.
#[test]
fn h2load_log_that_stops_early_is_a_lost_connection() {
    let text = "1000000\t200\t500\n2000000\t200\t40\n";
    parse_h2load_log(text, 0..2_100_040).unwrap();
    let error = parse_h2load_log(text, 0..2_500_040).unwrap_err().to_string();
    assert!(error.contains("in the last 500 ms"), "{error}");
}
