CREATE TABLE delivery (
    report_uid VARCHAR(64) NOT NULL,
    destination VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    state VARCHAR(24) NOT NULL,
    attempts INTEGER NOT NULL,
    next_at FLOAT NOT NULL,
    rung_at FLOAT NOT NULL,
    lease_until FLOAT NOT NULL,
    fence INTEGER NOT NULL,
    detail TEXT NOT NULL,
    sent_at FLOAT NOT NULL,
    sent_uid VARCHAR(64) NOT NULL,
    transaction_uid VARCHAR(64) NOT NULL,
    PRIMARY KEY (report_uid, destination)
);
CREATE INDEX delivery_by_state ON delivery (state, next_at);
CREATE INDEX delivery_by_transaction ON delivery (transaction_uid);
CREATE TABLE instance (
    sop_instance_uid VARCHAR(64) NOT NULL,
    digest VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    series_uid VARCHAR(64) NOT NULL,
    sop_class_uid VARCHAR(64) NOT NULL,
    transfer_syntax_uid VARCHAR(64) NOT NULL,
    modality VARCHAR(16) NOT NULL,
    patient_key VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    received_at FLOAT NOT NULL,
    peer VARCHAR(64) NOT NULL,
    calling_ae VARCHAR(16) NOT NULL,
    conflict BOOLEAN NOT NULL,
    PRIMARY KEY (sop_instance_uid, digest)
);
CREATE INDEX instance_by_study ON instance (study_uid);
CREATE TABLE not_labelled (
    sop_instance_uid VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    series_uid VARCHAR(64) NOT NULL,
    peer VARCHAR(64) NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (sop_instance_uid)
);
CREATE INDEX not_labelled_by_study ON not_labelled (study_uid);
CREATE TABLE refusal (
    calling_ae VARCHAR(16) NOT NULL,
    called_ae VARCHAR(16) NOT NULL,
    host VARCHAR(64) NOT NULL,
    reason VARCHAR(256) NOT NULL,
    count INTEGER NOT NULL,
    last_at FLOAT NOT NULL,
    PRIMARY KEY (calling_ae, called_ae, host, reason)
);
CREATE TABLE remark (
    sop_instance_uid VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    report_uid VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    said_by TEXT NOT NULL,
    note TEXT NOT NULL,
    changes TEXT NOT NULL,
    path TEXT NOT NULL,
    heard_at FLOAT NOT NULL,
    PRIMARY KEY (sop_instance_uid)
);
CREATE INDEX remark_by_report ON remark (report_uid);
CREATE TABLE report (
    sop_instance_uid VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    sop_class_uid VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    source_series_uid VARCHAR(64) NOT NULL,
    content VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    created_at FLOAT NOT NULL,
    superseded_by VARCHAR(64) NOT NULL,
    summary TEXT NOT NULL,
    PRIMARY KEY (sop_instance_uid)
);
CREATE INDEX report_by_series ON report (source_series_uid);
CREATE TABLE study (
    study_uid VARCHAR(64) NOT NULL,
    state VARCHAR(16) NOT NULL,
    reason TEXT NOT NULL,
    peer VARCHAR(64) NOT NULL,
    instances INTEGER NOT NULL,
    first_at FLOAT NOT NULL,
    last_at FLOAT NOT NULL,
    completed_by TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at FLOAT NOT NULL,
    rung_at FLOAT NOT NULL,
    lease_until FLOAT NOT NULL,
    fence INTEGER NOT NULL,
    PRIMARY KEY (study_uid)
);
CREATE INDEX study_by_state ON study (state, next_at);
